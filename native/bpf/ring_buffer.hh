#pragma once

#include <memory>
#include <vector>

#include <bpf/libbpf.h>
#include <napi.h>

#include "common/delivery.hh"
#include "common/reader.hh"

namespace ns {

class RingBuffer : public Napi::ObjectWrap<RingBuffer> {
  public:
    static Napi::Function define(Napi::Env env);
    explicit RingBuffer(const Napi::CallbackInfo &info);
    ~RingBuffer() override;

  private:
    using Record = std::vector<uint8_t>;
    struct Free {
        void operator()(ring_buffer *ring) const {
            ring_buffer__free(ring);
        }
    };

    static int on_record(void *context, void *data, size_t size);
    Napi::Value lost(const Napi::CallbackInfo &info);
    void close(const Napi::CallbackInfo &info);
    void stop();

    // The reader comes last: its thread uses the two above.
    std::unique_ptr<ring_buffer, Free> ring_;
    std::shared_ptr<Delivery<Record>> delivery_;
    Reader reader_;
};

} // namespace ns
