// Types as BTF describes them, down to the fields that hold values.
#include "layout.hh"

#include <string>

namespace ns {

namespace {

constexpr int kMaxDepth = 8;

void add_fields(Napi::Env env, const btf *btf, uint32_t type_id, const std::string &name, uint32_t offset, int depth,
                Napi::Array &fields) {
    const btf_type *type = btf__type_by_id(btf, btf__resolve_type(btf, type_id));

    if (type && btf_is_composite(type) && depth < kMaxDepth) {
        const btf_member *member = btf_members(type);
        for (int i = 0; i < btf_vlen(type); i++, member++) {
            std::string own = btf__name_by_offset(btf, member->name_off);
            std::string full = name.empty() || own.empty() ? name + own : name + "." + own;
            add_fields(env, btf, member->type, full, offset + btf_member_bit_offset(type, i) / 8, depth + 1, fields);
        }
        return;
    }
    auto field = Napi::Object::New(env);
    field.Set("name", name);
    field.Set("offset", offset);
    field.Set("size", Napi::Number::New(env, btf__resolve_size(btf, type_id)));
    fields.Set(fields.Length(), field);
}

} // namespace

Napi::Value flat_layout(Napi::Env env, const btf *btf, uint32_t type_id) {
    int64_t size = btf && type_id ? btf__resolve_size(btf, type_id) : -1;

    if (size < 0)
        return env.Undefined();
    auto fields = Napi::Array::New(env);
    add_fields(env, btf, type_id, "", 0, 0, fields);
    auto result = Napi::Object::New(env);
    result.Set("size", Napi::Number::New(env, size));
    result.Set("fields", fields);
    return result;
}

} // namespace ns
