// A ring buffer read by a thread of its own.
#include "ring_buffer.hh"

#include <poll.h>
#include <sys/eventfd.h>

namespace ns {

Napi::Function RingBuffer::define(Napi::Env env) {
    return DefineClass(env, "RingBuffer",
                       {InstanceMethod("lost", &RingBuffer::lost), InstanceMethod("close", &RingBuffer::close)});
}

RingBuffer::RingBuffer(const Napi::CallbackInfo &info)
    : Napi::ObjectWrap<RingBuffer>(info), wake_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
    auto env = info.Env();

    if (!wake_)
        throw kernel_error(env, errno, "eventfd", "opening a ring buffer");
    ring_ = ring_buffer__new(fd_argument(info, 0), on_record, this, nullptr);
    if (!ring_)
        throw kernel_error(env, errno, "mmap", "opening a ring buffer");
    delivery_ = std::make_shared<Delivery<Record>>(
        env, info[1].As<Napi::Function>(), "nodesentry ring buffer", info[2].As<Napi::Number>().Uint32Value(),
        [](Napi::Env to, const Record &record) -> Napi::Value {
            return Napi::Buffer<uint8_t>::Copy(to, record.data(), record.size());
        });
    thread_ = std::thread([this] { poll(); });
}

RingBuffer::~RingBuffer() {
    stop();
}

int RingBuffer::on_record(void *context, void *data, size_t size) {
    auto *bytes = static_cast<uint8_t *>(data);

    static_cast<RingBuffer *>(context)->delivery_->push(Record(bytes, bytes + size));
    return 0;
}

void RingBuffer::poll() {
    pollfd fds[] = {{.fd = ring_buffer__epoll_fd(ring_), .events = POLLIN, .revents = 0},
                    {.fd = wake_.get(), .events = POLLIN, .revents = 0}};

    while (!stopping_) {
        if (::poll(fds, 2, -1) < 0 && errno != EINTR)
            return;
        if (!stopping_)
            ring_buffer__poll(ring_, 0);
    }
}

void RingBuffer::stop() {
    if (!ring_)
        return;
    stopping_ = true;
    if (thread_.joinable()) {
        eventfd_write(wake_.get(), 1);
        thread_.join();
    }
    if (delivery_)
        delivery_->close();
    ring_buffer__free(ring_);
    ring_ = nullptr;
    wake_.reset();
}

Napi::Value RingBuffer::lost(const Napi::CallbackInfo &info) {
    return Napi::BigInt::New(info.Env(), delivery_->lost());
}

void RingBuffer::close(const Napi::CallbackInfo &) {
    stop();
}

} // namespace ns
