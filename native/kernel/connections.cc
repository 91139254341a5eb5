// TCP connections that proxies of the current network namespace have with or for pods, by sock_diag(7): counted, told,
// ended.
#include <algorithm>
#include <arpa/inet.h>
#include <array>
#include <vector>

#include "functions.hh"
#include "sock_diag.hh"

namespace ns {

namespace {

// Older kernels do not tell, and of a socket in TIME_WAIT none does.
bool is_transparent(const nlmsghdr *message, const inet_diag_msg *diag) {
    auto *options =
        static_cast<const inet_diag_sockopt *>(attribute(message, diag, INET_DIAG_SOCKOPT, sizeof(inet_diag_sockopt)));

    return options ? options->transparent == 1 : diag->idiag_state != TCP_TIME_WAIT;
}

// Calls `each` for the connections that bear one of these addresses as their own, or as their peer's: on a transparent
// socket, or on `any`.
template <typename Each> void dump_of(const Napi::CallbackInfo &info, uint32_t states, Each each) {
    auto bytes = info[0].As<Napi::Uint8Array>();
    bool any = info[1].IsBoolean() && info[1].As<Napi::Boolean>().Value();
    std::vector<Address> wanted(bytes.ByteLength() / sizeof(Address));

    memcpy(wanted.data(), bytes.Data(), wanted.size() * sizeof(Address));
    auto is_wanted = [&](const Address &address) {
        return std::find(wanted.begin(), wanted.end(), address) != wanted.end();
    };
    for (uint8_t family : {AF_INET, AF_INET6}) {
        dump(info.Env(), family, states, "asking for connections",
             [&](const nlmsghdr *message, const inet_diag_msg *diag) {
                 if (is_wanted(address_of(diag, diag->id.idiag_src)) ||
                     (is_wanted(address_of(diag, diag->id.idiag_dst)) && (any || is_transparent(message, diag))))
                     each(diag);
             });
    }
}

Napi::Value tcp_connections(const Napi::CallbackInfo &info) {
    uint32_t count = 0;

    dump_of(info, ~kListen, [&](const inet_diag_msg *) { count++; });
    return Napi::Number::New(info.Env(), count);
}

// By what the kernel finds a socket again.
struct ConnectionId {
    uint32_t family;
    inet_diag_sockid id;
};

Napi::Object end_of(Napi::Env env, const Address &address, __be16 port) {
    char text[INET6_ADDRSTRLEN] = "";
    bool is_mapped = IN6_IS_ADDR_V4MAPPED(reinterpret_cast<const in6_addr *>(address.data()));

    inet_ntop(is_mapped ? AF_INET : AF_INET6, address.data() + (is_mapped ? 12 : 0), text, sizeof(text));
    auto result = Napi::Object::New(env);
    result.Set("ip", text);
    result.Set("port", ntohs(port));
    return result;
}

Napi::Value open_tcp_connections(const Napi::CallbackInfo &info) {
    auto env = info.Env();
    auto result = Napi::Array::New(env);

    dump_of(info, ~(kListen | 1 << TCP_TIME_WAIT), [&](const inet_diag_msg *diag) {
        ConnectionId id = {diag->idiag_family, diag->id};
        auto entry = Napi::Object::New(env);
        entry.Set("local", end_of(env, address_of(diag, diag->id.idiag_src), diag->id.idiag_sport));
        entry.Set("peer", end_of(env, address_of(diag, diag->id.idiag_dst), diag->id.idiag_dport));
        entry.Set("id", Napi::Buffer<uint8_t>::Copy(env, reinterpret_cast<uint8_t *>(&id), sizeof(id)));
        result.Set(result.Length(), entry);
    });
    return result;
}

// Resets each of these, at both ends: SOCK_DESTROY of linux/sock_diag.h. Returns how many there still were.
Napi::Value end_tcp_connections(const Napi::CallbackInfo &info) {
    auto env = info.Env();
    auto bytes = info[0].As<Napi::Uint8Array>();
    constexpr const char *doing = "ending a connection";
    Fd fd = open_diag(env);
    uint32_t ended = 0;

    for (size_t at = 0; at + sizeof(ConnectionId) <= bytes.ByteLength(); at += sizeof(ConnectionId)) {
        ConnectionId one;
        memcpy(&one, bytes.Data() + at, sizeof(one));
        DiagRequest request = diag_request(static_cast<uint8_t>(one.family), ~0U);
        request.header.nlmsg_type = SOCK_DESTROY;
        request.header.nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK;
        request.body.id = one.id;
        int error = ask(env, fd.get(), request.header, doing, [](const nlmsghdr *) {});
        if (error && error != ENOENT)
            throw kernel_error(env, error, "SOCK_DESTROY", doing);
        ended += error == 0;
    }
    return Napi::Number::New(env, ended);
}

} // namespace

void define_connections(Napi::Env env, Napi::Object exports) {
    exports.Set("tcpConnections", Napi::Function::New(env, tcp_connections));
    exports.Set("openTcpConnections", Napi::Function::New(env, open_tcp_connections));
    exports.Set("endTcpConnections", Napi::Function::New(env, end_tcp_connections));
}

} // namespace ns
