#include <napi.h>

#include "functions.hh"
#include "link_events.hh"

static Napi::Object init(Napi::Env env, Napi::Object exports) {
    exports.Set("LinkEvents", ns::LinkEvents::define(env));
    ns::define_namespaces(env, exports);
    ns::define_sockets(env, exports);
    ns::define_listeners(env, exports);
    ns::define_connections(env, exports);
    ns::define_socket_owners(env, exports);
    ns::define_socket_ends(env, exports);
    ns::define_routes(env, exports);
    ns::define_nftables(env, exports);
    ns::define_redirects(env, exports);
    ns::define_bridge_fdb(env, exports);
    ns::define_packets(env, exports);
    ns::define_locks(env, exports);
    ns::define_memory(env, exports);
    ns::define_announcements(env, exports);
    ns::define_datagram_listener(env, exports);
    ns::define_datagram_sender(env, exports);
    return exports;
}

NODE_API_MODULE(kernel, init)
