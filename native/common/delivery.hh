// From a thread of our own to JavaScript: a bounded queue that is handed over in batches and never blocks either side.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include <napi.h>

namespace ns {

template <typename Item> class Delivery : public std::enable_shared_from_this<Delivery<Item>> {
  public:
    using ToJs = Napi::Value (*)(Napi::Env, const Item &);

    Delivery(Napi::Env env, Napi::Function callback, const char *name, size_t limit, ToJs to_js)
        : limit_(limit), to_js_(to_js) {
        function_ = Napi::ThreadSafeFunction::New(env, callback, name, 0, 1);
        function_.Unref(env); // an open ring alone does not keep the process alive
    }
    ~Delivery() {
        close();
    }

    // On the producing thread. False where the queue is full: the item is dropped and counted.
    bool push(Item item) {
        bool wake;
        {
            std::lock_guard<std::mutex> lock(mutex_);
            if (queue_.size() >= limit_) {
                lost_++;
                return false;
            }
            wake = queue_.empty();
            queue_.push_back(std::move(item));
        }
        if (wake)
            call();
        return true;
    }

    // On the producing thread: `item` stands for everything that was still in the queue.
    void restart(Item item) {
        bool wake;
        {
            std::lock_guard<std::mutex> lock(mutex_);
            wake = queue_.empty();
            queue_.clear();
            queue_.push_back(std::move(item));
        }
        if (wake)
            call();
    }

    uint64_t lost() const {
        return lost_;
    }

    // On the JavaScript thread, after the producing thread has ended. Calls already queued find nothing.
    void close() {
        if (!closed_.exchange(true))
            function_.Release();
    }

  private:
    void call() {
        function_.NonBlockingCall([self = this->shared_from_this()](Napi::Env env, Napi::Function callback) {
            try {
                self->deliver(env, callback);
            } catch (const Napi::Error &error) {
                error.ThrowAsJavaScriptException(); // unwinding further would leak this call
            }
        });
    }

    void deliver(Napi::Env env, Napi::Function callback) {
        std::vector<Item> items;
        {
            std::lock_guard<std::mutex> lock(mutex_);
            items.swap(queue_);
        }
        if (closed_ || items.empty())
            return;
        auto array = Napi::Array::New(env, items.size());
        for (size_t i = 0; i < items.size(); i++) {
            Napi::HandleScope scope(env);
            array.Set(static_cast<uint32_t>(i), to_js_(env, items[i]));
        }
        callback.Call({array});
    }

    std::mutex mutex_;
    std::vector<Item> queue_;
    std::atomic<uint64_t> lost_{0};
    std::atomic<bool> closed_{false};
    const size_t limit_;
    const ToJs to_js_;
    Napi::ThreadSafeFunction function_;
};

} // namespace ns
