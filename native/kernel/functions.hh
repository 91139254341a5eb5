#pragma once

#include <napi.h>

namespace ns {

void define_namespaces(Napi::Env env, Napi::Object exports);
void define_sockets(Napi::Env env, Napi::Object exports);
void define_listeners(Napi::Env env, Napi::Object exports);
void define_connections(Napi::Env env, Napi::Object exports);
void define_socket_owners(Napi::Env env, Napi::Object exports);
void define_socket_ends(Napi::Env env, Napi::Object exports);
void define_routes(Napi::Env env, Napi::Object exports);
void define_nftables(Napi::Env env, Napi::Object exports);
void define_redirects(Napi::Env env, Napi::Object exports);
void define_bridge_fdb(Napi::Env env, Napi::Object exports);
void define_packets(Napi::Env env, Napi::Object exports);
void define_locks(Napi::Env env, Napi::Object exports);
void define_memory(Napi::Env env, Napi::Object exports);
void define_announcements(Napi::Env env, Napi::Object exports);
void define_datagram_listener(Napi::Env env, Napi::Object exports);
void define_datagram_sender(Napi::Env env, Napi::Object exports);

} // namespace ns
