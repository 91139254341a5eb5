#pragma once

#include <memory>
#include <string>

#include <napi.h>

#include "common/delivery.hh"
#include "common/reader.hh"

namespace ns {

struct LinkEvent {
    bool resync; // events are missing: whatever was known about links is to be read anew
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
    bool receive();
    void resync();
    void stop();

    // The reader comes last: its thread uses the two above.
    Fd socket_;
    std::shared_ptr<Delivery<LinkEvent>> delivery_;
    Reader reader_;
};

} // namespace ns
