#include <napi.h>

#include "functions.hh"
#include "object.hh"
#include "ring_buffer.hh"

static Napi::Object init(Napi::Env env, Napi::Object exports) {
    exports.Set("Object", ns::Object::define(env));
    exports.Set("RingBuffer", ns::RingBuffer::define(env));
    ns::define_maps(env, exports);
    ns::define_map_readings(env, exports);
    ns::define_programs(env, exports);
    ns::define_links(env, exports);
    ns::define_clsact(env, exports);
    ns::define_splice(env, exports);
    return exports;
}

NODE_API_MODULE(bpf, init)
