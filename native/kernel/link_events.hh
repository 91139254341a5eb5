#pragma once

#include <atomic>
#include <memory>
#include <string>
#include <thread>

#include <napi.h>

#include "common/delivery.hh"
#include "common/errors.hh"

namespace ns {

struct LinkEvent {
    bool resync; // the buffer overran: whatever was in it is lost
    bool removed;
    bool up;
    int ifindex;
    uint32_t master;
    std::string name;
};

class LinkEvents : public Napi::ObjectWrap<LinkEvents> {
  public:
    static Napi::Function define(Napi::Env env);
    explicit LinkEvents(const Napi::CallbackInfo &info);
    ~LinkEvents() override;

  private:
    void close(const Napi::CallbackInfo &info);
    void run();
    bool receive();
    void stop();

    Fd socket_;
    Fd wake_;
    std::atomic<bool> stopping_{false};
    std::thread thread_;
    std::shared_ptr<Delivery<LinkEvent>> delivery_;
};

} // namespace ns
