#pragma once

#include <napi.h>

namespace ns {

void define_maps(Napi::Env env, Napi::Object exports);
void define_map_readings(Napi::Env env, Napi::Object exports);
void define_programs(Napi::Env env, Napi::Object exports);
void define_links(Napi::Env env, Napi::Object exports);
void define_clsact(Napi::Env env, Napi::Object exports);
void define_splice(Napi::Env env, Napi::Object exports);

} // namespace ns
