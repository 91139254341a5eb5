// Maps by descriptor. Sizes are checked in TypeScript against what mapInfo() told.
#include <memory>
#include <vector>

#include <bpf/bpf.h>
#include <bpf/btf.h>
#include <bpf/libbpf.h>

#include "common/errors.hh"
#include "functions.hh"
#include "layout.hh"
#include "map_reading.hh"

namespace ns {

namespace {

bool is_per_cpu(uint32_t type) {
    return type == BPF_MAP_TYPE_PERCPU_HASH || type == BPF_MAP_TYPE_PERCPU_ARRAY ||
           type == BPF_MAP_TYPE_LRU_PERCPU_HASH || type == BPF_MAP_TYPE_PERCPU_CGROUP_STORAGE;
}

uint32_t user_value_size(const bpf_map_info &info) {
    uint32_t rounded = (info.value_size + 7) / 8 * 8;
    return is_per_cpu(info.type) ? rounded * libbpf_num_possible_cpus() : info.value_size;
}

Napi::Value map_info(const Napi::CallbackInfo &info) {
    auto env = info.Env();
    bpf_map_info map = {};
    uint32_t length = sizeof(map);

    if (bpf_obj_get_info_by_fd(fd_argument(info, 0), &map, &length))
        throw kernel_error(env, errno, "bpf", "reading a map's description");
    auto result = Napi::Object::New(env);
    result.Set("name", map.name);
    result.Set("type", map.type);
    result.Set("id", map.id);
    result.Set("keySize", map.key_size);
    result.Set("valueSize", user_value_size(map));
    result.Set("maxEntries", map.max_entries);
    return result;
}

// The kernel keeps the BTF that a map was created with; some types (SOCKMAP, ring buffer) have none.
Napi::Value map_shape(const Napi::CallbackInfo &info) {
    auto env = info.Env();
    bpf_map_info map = {};
    uint32_t length = sizeof(map);

    if (bpf_obj_get_info_by_fd(fd_argument(info, 0), &map, &length))
        throw kernel_error(env, errno, "bpf", "reading a map's description");
    std::unique_ptr<btf, decltype(&btf__free)> types(nullptr, btf__free);
    if (map.btf_id) {
        types.reset(btf__load_from_kernel_by_id(map.btf_id));
        if (!types)
            throw kernel_error(env, errno, "bpf", "reading the types of map " + std::string(map.name));
    }
    auto result = Napi::Object::New(env);
    result.Set("type", map.type);
    result.Set("flags", map.map_flags);
    result.Set("keySize", map.key_size);
    result.Set("valueSize", map.value_size);
    result.Set("maxEntries", map.max_entries);
    result.Set("key", flat_layout(env, types.get(), map.btf_key_type_id));
    result.Set("value", flat_layout(env, types.get(), map.btf_value_type_id));
    return result;
}

Napi::Value map_get(const Napi::CallbackInfo &info) {
    auto env = info.Env();
    auto key = info[1].As<Napi::Uint8Array>();
    auto value = Napi::Buffer<uint8_t>::New(env, info[2].As<Napi::Number>().Uint32Value());

    if (bpf_map_lookup_elem(fd_argument(info, 0), key.Data(), value.Data()) == 0)
        return value;
    if (errno == ENOENT)
        return env.Undefined();
    throw kernel_error(env, errno, "bpf", "looking up a map entry");
}

void map_set(const Napi::CallbackInfo &info) {
    auto key = info[1].As<Napi::Uint8Array>();
    auto value = info[2].As<Napi::Uint8Array>();
    auto flags = static_cast<uint64_t>(info[3].As<Napi::Number>().Int64Value());

    if (bpf_map_update_elem(fd_argument(info, 0), key.Data(), value.Data(), flags))
        throw kernel_error(info.Env(), errno, "bpf", "setting a map entry");
}

// Entries whose key is there already are left as they are.
Napi::Value map_add_many(const Napi::CallbackInfo &info) {
    auto env = info.Env();
    int fd = fd_argument(info, 0);
    auto keys = info[1].As<Napi::Uint8Array>();
    auto values = info[2].As<Napi::Uint8Array>();
    uint32_t key_size = info[3].As<Napi::Number>().Uint32Value();
    uint32_t value_size = info[4].As<Napi::Number>().Uint32Value();
    uint32_t added = 0, refused = 0;

    for (size_t i = 0; i < keys.ByteLength() / key_size; i++) {
        if (bpf_map_update_elem(fd, keys.Data() + i * key_size, values.Data() + i * value_size, BPF_NOEXIST) == 0)
            added++;
        else if (errno == E2BIG)
            refused++;
        else if (errno != EEXIST)
            throw kernel_error(env, errno, "bpf", "adding map entries");
    }
    auto result = Napi::Object::New(env);
    result.Set("added", added);
    result.Set("refused", refused);
    return result;
}

// A SOCKMAP says EINVAL for a slot that is empty; an array says it for every key, for nothing in it can be deleted.
bool was_absent(int fd, int error) {
    bpf_map_info map = {};
    uint32_t length = sizeof(map);

    return error == ENOENT ||
           (error == EINVAL && bpf_obj_get_info_by_fd(fd, &map, &length) == 0 && map.type == BPF_MAP_TYPE_SOCKMAP);
}

Napi::Value map_delete(const Napi::CallbackInfo &info) {
    auto env = info.Env();
    auto key = info[1].As<Napi::Uint8Array>();

    if (bpf_map_delete_elem(fd_argument(info, 0), key.Data()) == 0)
        return Napi::Boolean::New(env, true);
    int error = errno;
    if (was_absent(fd_argument(info, 0), error))
        return Napi::Boolean::New(env, false);
    throw kernel_error(env, error, "bpf", "deleting a map entry");
}

Napi::Value map_entries(const Napi::CallbackInfo &info) {
    uint32_t key_size = info[1].As<Napi::Number>().Uint32Value();
    uint32_t value_size = info[2].As<Napi::Number>().Uint32Value();
    uint32_t max_entries = info[3].As<Napi::Number>().Uint32Value();

    return read_entries(fd_argument(info, 0), key_size, value_size, max_entries).in(info.Env());
}

Napi::Value map_delete_many(const Napi::CallbackInfo &info) {
    auto env = info.Env();
    int fd = fd_argument(info, 0);
    auto keys = info[1].As<Napi::Uint8Array>();
    uint32_t key_size = info[2].As<Napi::Number>().Uint32Value();
    uint32_t total = keys.ByteLength() / key_size, next = 0, deleted = 0;
    bool batches = true;

    while (next < total) {
        auto *key = keys.Data() + static_cast<size_t>(next) * key_size;
        uint32_t done = total - next;
        int error = batches ? bpf_map_delete_batch(fd, key, &done, nullptr) : bpf_map_delete_elem(fd, key);

        if (error && batches && errno != ENOENT) {
            batches = false;
            continue;
        }
        if (error && !batches && !was_absent(fd, errno))
            throw kernel_error(env, errno, "bpf", "deleting map entries");
        // A batch stops at the first key that is not there: go on behind it.
        uint32_t removed = batches ? done : (error ? 0 : 1);
        deleted += removed;
        next += batches ? done + (error ? 1 : 0) : 1;
    }
    return Napi::Number::New(env, deleted);
}

void map_set_socket(const Napi::CallbackInfo &info) {
    auto key = info[1].As<Napi::Uint8Array>();
    uint64_t socket = static_cast<uint64_t>(info[2].As<Napi::Number>().Int64Value());

    if (bpf_map_update_elem(fd_argument(info, 0), key.Data(), &socket, BPF_ANY))
        throw kernel_error(info.Env(), errno, "bpf", "putting a socket into a map");
}

Napi::Value possible_cpus(const Napi::CallbackInfo &info) {
    return Napi::Number::New(info.Env(), libbpf_num_possible_cpus());
}

} // namespace

void define_maps(Napi::Env env, Napi::Object exports) {
    exports.Set("mapInfo", Napi::Function::New(env, map_info));
    exports.Set("mapShape", Napi::Function::New(env, map_shape));
    exports.Set("mapGet", Napi::Function::New(env, map_get));
    exports.Set("mapSet", Napi::Function::New(env, map_set));
    exports.Set("mapAddMany", Napi::Function::New(env, map_add_many));
    exports.Set("mapDelete", Napi::Function::New(env, map_delete));
    exports.Set("mapEntries", Napi::Function::New(env, map_entries));
    exports.Set("mapDeleteMany", Napi::Function::New(env, map_delete_many));
    exports.Set("mapSetSocket", Napi::Function::New(env, map_set_socket));
    exports.Set("possibleCpus", Napi::Function::New(env, possible_cpus));
}

} // namespace ns
