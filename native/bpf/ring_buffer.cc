// A ring buffer read by a thread of its own.
#include "ring_buffer.hh"

namespace ns {

Napi::Function RingBuffer::define(Napi::Env env) {
    return DefineClass(env, "RingBuffer",
                       {InstanceMethod("lost", &RingBuffer::lost), InstanceMethod("close", &RingBuffer::close)});
}

RingBuffer::RingBuffer(const Napi::CallbackInfo &info) : Napi::ObjectWrap<RingBuffer>(info), reader_(info.Env()) {
    auto env = info.Env();

    ring_.reset(ring_buffer__new(fd_argument(info, 0), on_record, this, nullptr));
    if (!ring_)
        throw kernel_error(env, errno, "mmap", "opening a ring buffer");
    delivery_ = std::make_shared<Delivery<Record>>(
        env, info[1].As<Napi::Function>(), "nodesentry ring buffer", info[2].As<Napi::Number>().Uint32Value(),
        [](Napi::Env to, const Record &record) -> Napi::Value {
            return Napi::Buffer<uint8_t>::Copy(to, record.data(), record.size());
        });
    reader_.start(
        ring_buffer__epoll_fd(ring_.get()),
        [this] {
            ring_buffer__consume(ring_.get());
            return true;
        },
        [this] { stop(); }, info[3].As<Napi::Number>().Int32Value());
}

RingBuffer::~RingBuffer() {
    stop();
}

int RingBuffer::on_record(void *context, void *data, size_t size) {
    auto *self = static_cast<RingBuffer *>(context);
    auto *bytes = static_cast<uint8_t *>(data);

    self->delivery_->push(Record(bytes, bytes + size));
    // libbpf reads on for as long as there is more: a busy writer must not keep close() waiting.
    return self->reader_.stopping() ? -ECANCELED : 0;
}

void RingBuffer::stop() {
    reader_.stop();
    delivery_->close();
    ring_.reset();
}

Napi::Value RingBuffer::lost(const Napi::CallbackInfo &info) {
    return Napi::BigInt::New(info.Env(), delivery_->lost());
}

void RingBuffer::close(const Napi::CallbackInfo &) {
    stop();
}

} // namespace ns
