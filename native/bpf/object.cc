// A BPF object file between opening and loading: read-only data, reused maps, verifier log, layouts from BTF.
#include "object.hh"

#include <cstdarg>
#include <cstdio>
#include <string>
#include <vector>

#include <bpf/bpf.h>
#include <bpf/btf.h>

#include "common/errors.hh"
#include "layout.hh"

namespace ns {

namespace {

constexpr size_t kLogLimit = 1 << 20;

// Of libbpf on this thread, since the last time they were taken.
thread_local std::string messages;

int collect(enum libbpf_print_level level, const char *format, va_list arguments) {
    va_list again;

    if (level == LIBBPF_DEBUG)
        return 0;
    va_copy(again, arguments);
    int length = vsnprintf(nullptr, 0, format, again);
    va_end(again);
    if (length <= 0)
        return length;
    std::vector<char> text(length + 1); // a verifier's log is one message of any length
    vsnprintf(text.data(), text.size(), format, arguments);
    messages.append(text.data(), length);
    if (messages.size() > kLogLimit)
        messages.erase(0, messages.size() - kLogLimit); // the reason stands at its end
    return length;
}

std::string take_messages() {
    return std::exchange(messages, std::string());
}

} // namespace

Napi::Function Object::define(Napi::Env env) {
    libbpf_set_print(collect);
    return DefineClass(env, "Object",
                       {
                           InstanceMethod("setReadOnlyData", &Object::set_read_only_data),
                           InstanceMethod("reuseMap", &Object::reuse_map),
                           InstanceMethod("load", &Object::load),
                           InstanceMethod("mapShape", &Object::map_shape),
                           InstanceMethod("mapFd", &Object::map_fd),
                           InstanceMethod("programFd", &Object::program_fd),
                           InstanceMethod("layout", &Object::layout),
                           InstanceMethod("enumValues", &Object::enum_values),
                           InstanceMethod("close", &Object::close),
                       });
}

Object::Object(const Napi::CallbackInfo &info) : Napi::ObjectWrap<Object>(info) {
    path_ = text_argument(info, 0);
    take_messages();
    object_ = bpf_object__open_file(path_.c_str(), nullptr);
    if (!object_)
        throw kernel_error(info.Env(), errno, "bpf", "opening " + path_, take_messages());
}

Object::~Object() {
    release();
}

void Object::release() {
    if (object_)
        bpf_object__close(object_);
    object_ = nullptr;
}

bpf_object *Object::get(Napi::Env env) const {
    if (!object_)
        throw Napi::Error::New(env, path_ + " is closed");
    return object_;
}

void Object::set_read_only_data(const Napi::CallbackInfo &info) {
    auto env = info.Env();
    auto *object = get(env);
    std::string name = text_argument(info, 0);
    auto value = info[1].As<Napi::Uint8Array>();
    const btf *btf = bpf_object__btf(object);
    int section = btf ? btf__find_by_name_kind(btf, ".rodata", BTF_KIND_DATASEC) : -1;

    if (section > 0) {
        const btf_type *type = btf__type_by_id(btf, section);
        const btf_var_secinfo *variable = btf_var_secinfos(type);

        for (int i = 0; i < btf_vlen(type); i++, variable++) {
            const btf_type *declaration = btf__type_by_id(btf, variable->type);

            if (name != btf__name_by_offset(btf, declaration->name_off))
                continue;
            if (variable->size != value.ByteLength())
                throw Napi::RangeError::New(env, "value must have the " + std::to_string(variable->size) +
                                                     " bytes of " + name);
            bpf_map *map = bpf_object__find_map_by_name(object, ".rodata");
            size_t size = 0;
            auto *initial = map ? static_cast<const char *>(bpf_map__initial_value(map, &size)) : nullptr;
            if (!initial || variable->offset + variable->size > size)
                break;
            std::vector<char> data(initial, initial + size);
            memcpy(data.data() + variable->offset, value.Data(), value.ByteLength());
            int error = bpf_map__set_initial_value(map, data.data(), data.size());
            if (error)
                throw kernel_error(env, -error, "bpf", "setting " + name + " of " + path_);
            return;
        }
    }
    throw Napi::RangeError::New(env, "variable " + name + " is not in the read-only data of " + path_);
}

void Object::reuse_map(const Napi::CallbackInfo &info) {
    auto env = info.Env();
    std::string name = text_argument(info, 0);
    bpf_map *map = bpf_object__find_map_by_name(get(env), name.c_str());

    if (!map)
        throw Napi::RangeError::New(env, "map " + name + " is not in " + path_);

    bpf_map_info have = {};
    uint32_t length = sizeof(have);
    if (bpf_obj_get_info_by_fd(fd_argument(info, 1), &have, &length))
        throw kernel_error(env, errno, "bpf", "reading map " + name);
    if (have.type != bpf_map__type(map) || have.key_size != bpf_map__key_size(map) ||
        have.value_size != bpf_map__value_size(map) || have.max_entries != bpf_map__max_entries(map))
        throw kernel_error(env, EINVAL, "bpf",
                           "map " + name + " has another type, key, value or size than in " + path_);
    int error = bpf_map__reuse_fd(map, fd_argument(info, 1));
    if (error)
        throw kernel_error(env, -error, "bpf", "reusing map " + name);
}

void Object::load(const Napi::CallbackInfo &info) {
    take_messages();
    int error = bpf_object__load(get(info.Env()));
    if (error)
        throw kernel_error(info.Env(), -error, "bpf", "loading " + path_, take_messages());
}

Napi::Value Object::map_shape(const Napi::CallbackInfo &info) {
    auto env = info.Env();
    auto *object = get(env);
    std::string name = text_argument(info, 0);
    bpf_map *map = bpf_object__find_map_by_name(object, name.c_str());

    if (!map)
        throw Napi::RangeError::New(env, "map " + name + " is not in " + path_);
    const btf *btf = bpf_object__btf(object);
    auto result = Napi::Object::New(env);
    result.Set("type", static_cast<uint32_t>(bpf_map__type(map)));
    result.Set("flags", bpf_map__map_flags(map));
    result.Set("keySize", bpf_map__key_size(map));
    result.Set("valueSize", bpf_map__value_size(map));
    result.Set("maxEntries", bpf_map__max_entries(map));
    result.Set("key", flat_layout(env, btf, bpf_map__btf_key_type_id(map)));
    result.Set("value", flat_layout(env, btf, bpf_map__btf_value_type_id(map)));
    return result;
}

Napi::Value Object::map_fd(const Napi::CallbackInfo &info) {
    std::string name = text_argument(info, 0);
    bpf_map *map = bpf_object__find_map_by_name(get(info.Env()), name.c_str());
    return duplicate(info.Env(), map ? bpf_map__fd(map) : -1, "map " + name);
}

Napi::Value Object::program_fd(const Napi::CallbackInfo &info) {
    std::string name = text_argument(info, 0);
    bpf_program *program = bpf_object__find_program_by_name(get(info.Env()), name.c_str());
    return duplicate(info.Env(), program ? bpf_program__fd(program) : -1, "program " + name);
}

Napi::Value Object::duplicate(Napi::Env env, int fd, const std::string &what) const {
    if (fd < 0)
        throw Napi::RangeError::New(env, what + " is not in " + path_ + ", or it is not loaded");
    int copy = fcntl(fd, F_DUPFD_CLOEXEC, 3);
    if (copy < 0)
        throw kernel_error(env, errno, "fcntl", "duplicating the descriptor of " + what);
    return Napi::Number::New(env, copy);
}

Napi::Value Object::layout(const Napi::CallbackInfo &info) {
    auto env = info.Env();
    std::string name = text_argument(info, 0);
    const btf *btf = bpf_object__btf(get(env));
    int id = btf ? btf__find_by_name_kind(btf, name.c_str(), BTF_KIND_STRUCT) : -1;

    if (id < 0)
        throw Napi::RangeError::New(env, "struct " + name + " is not in the BTF of " + path_);

    const btf_type *type = btf__type_by_id(btf, id);
    const btf_member *member = btf_members(type);
    auto fields = Napi::Array::New(env);
    for (int i = 0; i < btf_vlen(type); i++, member++) {
        auto field = Napi::Object::New(env);
        field.Set("name", btf__name_by_offset(btf, member->name_off));
        field.Set("offset", btf_member_bit_offset(type, i) / 8);
        field.Set("size", Napi::Number::New(env, btf__resolve_size(btf, member->type)));
        fields.Set(i, field);
    }
    auto result = Napi::Object::New(env);
    result.Set("size", type->size);
    result.Set("fields", fields);
    return result;
}

Napi::Value Object::enum_values(const Napi::CallbackInfo &info) {
    auto env = info.Env();
    std::string name = text_argument(info, 0);
    const btf *btf = bpf_object__btf(get(env));
    int id = btf ? btf__find_by_name_kind(btf, name.c_str(), BTF_KIND_ENUM) : -1;

    if (id < 0)
        throw Napi::RangeError::New(env, "enum " + name + " is not in the BTF of " + path_);

    const btf_type *type = btf__type_by_id(btf, id);
    const struct btf_enum *value = btf_enum(type);
    auto result = Napi::Array::New(env);
    for (int i = 0; i < btf_vlen(type); i++, value++) {
        auto entry = Napi::Array::New(env, 2);
        entry.Set(0u, btf__name_by_offset(btf, value->name_off));
        entry.Set(1u, value->val);
        result.Set(i, entry);
    }
    return result;
}

void Object::close(const Napi::CallbackInfo &) {
    release();
}

} // namespace ns
