#pragma once

#include <atomic>
#include <memory>
#include <thread>
#include <vector>

#include <bpf/libbpf.h>
#include <napi.h>

#include "common/delivery.hh"
#include "common/errors.hh"

namespace ns {

class RingBuffer : public Napi::ObjectWrap<RingBuffer> {
  public:
    static Napi::Function define(Napi::Env env);
    explicit RingBuffer(const Napi::CallbackInfo &info);
    ~RingBuffer() override;

  private:
    using Record = std::vector<uint8_t>;

    static int on_record(void *context, void *data, size_t size);
    Napi::Value lost(const Napi::CallbackInfo &info);
    void close(const Napi::CallbackInfo &info);
    void poll();
    void stop();

    ring_buffer *ring_ = nullptr;
    Fd wake_;
    std::atomic<bool> stopping_{false};
    std::thread thread_;
    std::shared_ptr<Delivery<Record>> delivery_;
};

} // namespace ns
