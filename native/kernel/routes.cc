// The routes of one table, filtered by the kernel: a node has thousands in the others.
#include <arpa/inet.h>
#include <sys/socket.h>

#include <linux/netlink.h>
#include <linux/rtnetlink.h>

#include "common/errors.hh"
#include "common/netlink.hh"
#include "functions.hh"

#ifndef NETLINK_GET_STRICT_CHK
#define NETLINK_GET_STRICT_CHK 12 // Linux 4.20
#endif

namespace ns {

namespace {

constexpr timeval kPatience = {.tv_sec = 2, .tv_usec = 0};

struct Request {
    nlmsghdr header;
    rtmsg route;
    rtattr table_header;
    uint32_t table;
};

Napi::Object to_js(Napi::Env env, const nlmsghdr *message) {
    auto *route = static_cast<const rtmsg *>(NLMSG_DATA(message));
    int length = message->nlmsg_len - NLMSG_LENGTH(sizeof(*route));
    auto result = Napi::Object::New(env);
    char text[INET6_ADDRSTRLEN] = "";

    result.Set("type", route->rtm_type);
    result.Set("protocol", route->rtm_protocol);
    result.Set("prefixLength", route->rtm_dst_len);
    for (auto *attribute = RTM_RTA(route); RTA_OK(attribute, length); attribute = RTA_NEXT(attribute, length)) {
        size_t bytes = RTA_PAYLOAD(attribute);
        if (attribute->rta_type == RTA_OIF && bytes >= sizeof(uint32_t)) {
            uint32_t index = 0;
            memcpy(&index, RTA_DATA(attribute), sizeof(index));
            result.Set("interfaceIndex", index);
        }
        if (attribute->rta_type == RTA_DST && bytes == (route->rtm_family == AF_INET6 ? 16U : 4U))
            inet_ntop(route->rtm_family, RTA_DATA(attribute), text, sizeof(text));
        if (attribute->rta_type == RTA_PRIORITY && bytes >= sizeof(uint32_t)) {
            uint32_t metric = 0;
            memcpy(&metric, RTA_DATA(attribute), sizeof(metric));
            result.Set("metric", metric);
        }
    }
    result.Set("destination", text);
    return result;
}

Napi::Value open_routes(const Napi::CallbackInfo &info) {
    int on = 1;
    Fd fd(socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE));

    if (!fd || setsockopt(fd.get(), SOL_NETLINK, NETLINK_GET_STRICT_CHK, &on, sizeof(on)) ||
        setsockopt(fd.get(), SOL_SOCKET, SO_RCVTIMEO, &kPatience, sizeof(kPatience)))
        throw kernel_error(info.Env(), errno, "socket", "opening a route socket");
    return Napi::Number::New(info.Env(), fd.release());
}

Napi::Value table_routes(const Napi::CallbackInfo &info) {
    auto env = info.Env();
    int fd = fd_argument(info, 0);
    Request request = {};

    request.header = {.nlmsg_len = sizeof(request),
                      .nlmsg_type = RTM_GETROUTE,
                      .nlmsg_flags = NLM_F_REQUEST | NLM_F_DUMP,
                      .nlmsg_seq = info[1].As<Napi::Number>().Uint32Value(),
                      .nlmsg_pid = 0};
    request.route.rtm_family = info[2].As<Napi::Number>().Int32Value() == 6 ? AF_INET6 : AF_INET;
    request.table_header = {.rta_len = RTA_LENGTH(sizeof(uint32_t)), .rta_type = RTA_TABLE};
    request.table = info[3].As<Napi::Number>().Uint32Value();

    auto result = Napi::Array::New(env);
    const char *doing = "listing the routes of a table";
    int error = ask(env, fd, request.header, doing, [&](const nlmsghdr *message) {
        if (message->nlmsg_type == RTM_NEWROUTE && message->nlmsg_len >= NLMSG_LENGTH(sizeof(rtmsg)))
            result.Set(result.Length(), to_js(env, message));
    });
    if (error && error != ENOENT) // no such table yet
        throw kernel_error(env, error, "recv", doing);
    return result;
}

} // namespace

void define_routes(Napi::Env env, Napi::Object exports) {
    exports.Set("openRoutes", Napi::Function::New(env, open_routes));
    exports.Set("tableRoutes", Napi::Function::New(env, table_routes));
}

} // namespace ns
