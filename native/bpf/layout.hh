#pragma once

#include <bpf/btf.h>
#include <napi.h>

namespace ns {

// {size, fields: [{name, offset, size}]} of a type: nested structs are taken apart ("address.bytes"), arrays are not,
// and a type without fields is one of no name. Undefined where there is no such type.
Napi::Value flat_layout(Napi::Env env, const btf *btf, uint32_t type_id);

} // namespace ns
