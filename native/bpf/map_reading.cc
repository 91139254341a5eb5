#include "map_reading.hh"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <functional>
#include <numeric>
#include <string>

#include <bpf/bpf.h>
#include <bpf/libbpf.h>

#include "common/errors.hh"
#include "functions.hh"

namespace ns {

namespace {

constexpr uint32_t kBatch = 512;

// Bounded, because a hash starts over when the key to go on from has been deleted meanwhile.
Entries read_one_by_one(int fd, uint32_t key_size, uint32_t value_size, uint32_t max_entries) {
    std::vector<uint8_t> previous(key_size), key(key_size), value(value_size);
    const void *from = nullptr;
    Entries entries;

    for (uint32_t i = 0; i < max_entries && bpf_map_get_next_key(fd, from, key.data()) == 0; i++) {
        if (bpf_map_lookup_elem(fd, key.data(), value.data()) == 0) {
            entries.keys.insert(entries.keys.end(), key.begin(), key.end());
            entries.values.insert(entries.values.end(), value.begin(), value.end());
            entries.count++;
        }
        previous = key;
        from = previous.data();
    }
    return entries;
}

uint64_t number_at(const uint8_t *bytes) {
    uint64_t number;

    memcpy(&number, bytes, sizeof(number));
    return number;
}

// The entries with the largest 64-bit number at `offset` of their value, the largest first.
Entries largest(const Entries &all, uint32_t key_size, uint32_t value_size, uint32_t offset, uint32_t limit) {
    std::vector<uint32_t> order(all.count);
    uint32_t kept = std::min(limit, all.count);
    Entries entries;
    auto number_of = [&](uint32_t index) {
        return number_at(all.values.data() + static_cast<size_t>(index) * value_size + offset);
    };

    std::iota(order.begin(), order.end(), 0);
    std::partial_sort(order.begin(), order.begin() + kept, order.end(),
                      [&](uint32_t a, uint32_t b) { return number_of(a) > number_of(b); });
    for (uint32_t i = 0; i < kept; i++) {
        auto key = all.keys.begin() + static_cast<size_t>(order[i]) * key_size;
        auto value = all.values.begin() + static_cast<size_t>(order[i]) * value_size;
        entries.keys.insert(entries.keys.end(), key, key + key_size);
        entries.values.insert(entries.values.end(), value, value + value_size);
    }
    entries.count = kept;
    return entries;
}

// Of a per-CPU map whose values are 64-bit numbers: each summed up over the CPUs.
Entries summed(const Entries &all, uint32_t value_size, uint32_t cpus) {
    uint32_t stride = value_size / cpus, words = stride / 8;
    std::vector<uint64_t> sums(static_cast<size_t>(all.count) * words);
    Entries entries;

    for (uint32_t i = 0; i < all.count; i++) {
        const uint8_t *value = all.values.data() + static_cast<size_t>(i) * value_size;
        for (uint32_t cpu = 0; cpu < cpus; cpu++) {
            for (uint32_t word = 0; word < words; word++)
                sums[static_cast<size_t>(i) * words + word] += number_at(value + cpu * stride + word * 8);
        }
    }
    entries.keys = all.keys;
    entries.values.resize(sums.size() * sizeof(uint64_t));
    memcpy(entries.values.data(), sums.data(), entries.values.size());
    entries.count = all.count;
    return entries;
}

// On a thread of the pool: a map may have hundreds of thousands of entries.
class Reading : public Napi::AsyncWorker {
  public:
    using Read = std::function<Entries(int)>;

    Reading(Napi::Env env, int fd, Read read)
        : Napi::AsyncWorker(env), promise_(Napi::Promise::Deferred::New(env)), fd_(copy_of(env, fd)),
          read_(std::move(read)) {}
    Napi::Promise promise() const {
        return promise_.Promise();
    }

  protected:
    void Execute() override {
        entries_ = read_(fd_.get());
    }
    void OnOK() override {
        promise_.Resolve(entries_.in(Env()));
    }
    void OnError(const Napi::Error &error) override {
        promise_.Reject(error.Value());
    }

  private:
    Napi::Promise::Deferred promise_;
    Fd fd_;
    Read read_;
    Entries entries_;
};

Napi::Value queued(const Napi::CallbackInfo &info, Reading::Read read) {
    auto *reading = new Reading(info.Env(), fd_argument(info, 0), std::move(read));
    auto promise = reading->promise();

    reading->Queue();
    return promise;
}

Napi::Value map_largest(const Napi::CallbackInfo &info) {
    uint32_t key_size = info[1].As<Napi::Number>().Uint32Value();
    uint32_t value_size = info[2].As<Napi::Number>().Uint32Value();
    uint32_t max_entries = info[3].As<Napi::Number>().Uint32Value();
    uint32_t offset = info[4].As<Napi::Number>().Uint32Value();
    uint32_t limit = info[5].As<Napi::Number>().Uint32Value();

    return queued(info, [=](int fd) {
        return largest(read_entries(fd, key_size, value_size, max_entries), key_size, value_size, offset, limit);
    });
}

Napi::Value map_sums(const Napi::CallbackInfo &info) {
    uint32_t key_size = info[1].As<Napi::Number>().Uint32Value();
    uint32_t value_size = info[2].As<Napi::Number>().Uint32Value();
    uint32_t max_entries = info[3].As<Napi::Number>().Uint32Value();
    uint32_t cpus = libbpf_num_possible_cpus();

    return queued(
        info, [=](int fd) { return summed(read_entries(fd, key_size, value_size, max_entries), value_size, cpus); });
}

} // namespace

Napi::Object Entries::in(Napi::Env env) const {
    auto result = Napi::Object::New(env);

    result.Set("count", count);
    result.Set("keys", Napi::Buffer<uint8_t>::Copy(env, keys.data(), keys.size()));
    result.Set("values", Napi::Buffer<uint8_t>::Copy(env, values.data(), values.size()));
    return result;
}

Entries read_entries(int fd, uint32_t key_size, uint32_t value_size, uint32_t max_entries) {
    std::vector<uint8_t> batch_keys(kBatch * key_size), batch_values(kBatch * value_size);
    // The cursor of a hash is a bucket number, of an array a key.
    std::vector<uint8_t> cursor(key_size < 4 ? 4 : key_size);
    uint32_t size = kBatch;
    Entries entries;

    for (void *from = nullptr;;) {
        uint32_t got = size;
        int error =
            bpf_map_lookup_batch(fd, from, cursor.data(), batch_keys.data(), batch_values.data(), &got, nullptr);

        if (error && errno == ENOSPC) { // one bucket holds more than the batch
            size *= 2;
            batch_keys.resize(size * key_size);
            batch_values.resize(size * value_size);
            continue;
        }
        // No batches for this type, or (EINTR) a trie that changes too fast for them.
        if (error && errno != ENOENT)
            return read_one_by_one(fd, key_size, value_size, max_entries);
        entries.keys.insert(entries.keys.end(), batch_keys.begin(), batch_keys.begin() + got * key_size);
        entries.values.insert(entries.values.end(), batch_values.begin(), batch_values.begin() + got * value_size);
        entries.count += got;
        if (error)
            return entries;
        from = cursor.data();
    }
}

void define_map_readings(Napi::Env env, Napi::Object exports) {
    exports.Set("mapLargest", Napi::Function::New(env, map_largest));
    exports.Set("mapSums", Napi::Function::New(env, map_sums));
}

} // namespace ns
