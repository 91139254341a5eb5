// What this process holds from the C library.
#include <malloc.h>

#include "functions.hh"

namespace ns {

namespace {

Napi::Value trim_memory(const Napi::CallbackInfo &info) {
#ifdef __GLIBC__
    return Napi::Boolean::New(info.Env(), malloc_trim(0) == 1);
#else
    return Napi::Boolean::New(info.Env(), false);
#endif
}

} // namespace

void define_memory(Napi::Env env, Napi::Object exports) {
    exports.Set("trimMemory", Napi::Function::New(env, trim_memory));
}

} // namespace ns
