#pragma once

#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include <napi.h>

#include "common/delivery.hh"
#include "common/reader.hh"

namespace ns {

// One message, with the connection that it came by and is answered by.
struct Announcement {
    Fd connection;
    std::string text;
    std::vector<Fd> descriptors;
    bool too_long;
    bool too_many;
};

class AnnounceDoor : public Napi::ObjectWrap<AnnounceDoor> {
  public:
    static Napi::Function define(Napi::Env env);
    explicit AnnounceDoor(const Napi::CallbackInfo &info);
    ~AnnounceDoor() override;

  private:
    using Clock = std::chrono::steady_clock;
    using Item = std::shared_ptr<Announcement>;

    // Has connected, and said nothing yet.
    struct Client {
        Fd fd;
        Clock::time_point until;
    };

    static Napi::Value to_js(Napi::Env env, const Item &item);
    void close(const Napi::CallbackInfo &info);
    bool receive();
    void accept_all();
    void take(int fd);
    void expire();
    void stop();

    // The reader comes last: its thread uses the others.
    Fd socket_;
    Fd epoll_;
    Fd timer_;
    std::chrono::milliseconds patience_;
    size_t longest_;
    size_t most_descriptors_;
    std::vector<Client> clients_; // the oldest first
    std::shared_ptr<Delivery<Item>> delivery_;
    Reader reader_;
};

} // namespace ns
