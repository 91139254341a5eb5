// Links that come, change and go, by netlink multicast, read by a thread of its own.
#include "link_events.hh"

#include <net/if.h>
#include <sys/socket.h>

#include <linux/netlink.h>
#include <linux/rtnetlink.h>

namespace ns {

namespace {

LinkEvent parse(const nlmsghdr *message) {
    auto *link = static_cast<const ifinfomsg *>(NLMSG_DATA(message));
    int length = message->nlmsg_len - NLMSG_LENGTH(sizeof(*link));
    LinkEvent event = {};

    event.removed = message->nlmsg_type == RTM_DELLINK;
    event.ifindex = link->ifi_index;
    event.up = (link->ifi_flags & IFF_UP) != 0;
    for (auto *attribute = IFLA_RTA(link); RTA_OK(attribute, length); attribute = RTA_NEXT(attribute, length)) {
        auto *data = static_cast<const char *>(RTA_DATA(attribute));
        if (attribute->rta_type == IFLA_IFNAME)
            event.name.assign(data, strnlen(data, RTA_PAYLOAD(attribute)));
        else if (attribute->rta_type == IFLA_MASTER && RTA_PAYLOAD(attribute) >= sizeof(event.master))
            memcpy(&event.master, data, sizeof(event.master));
    }
    return event;
}

Napi::Value to_js(Napi::Env env, const LinkEvent &event) {
    if (event.resync)
        return env.Null();
    auto result = Napi::Object::New(env);
    result.Set("kind", event.removed ? "del" : "new");
    result.Set("ifindex", event.ifindex);
    result.Set("name", event.name);
    result.Set("up", event.up);
    result.Set("master", event.master);
    return result;
}

} // namespace

Napi::Function LinkEvents::define(Napi::Env env) {
    return DefineClass(env, "LinkEvents", {InstanceMethod("close", &LinkEvents::close)});
}

LinkEvents::LinkEvents(const Napi::CallbackInfo &info)
    : Napi::ObjectWrap<LinkEvents>(info), socket_(socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE)),
      reader_(info.Env()) {
    auto env = info.Env();
    int bytes = info[1].As<Napi::Number>().Int32Value();
    sockaddr_nl address = {};

    if (!socket_)
        throw kernel_error(env, errno, "socket", "opening a link event socket");
    // Beyond net.core.rmem_max, which needs CAP_NET_ADMIN.
    if (setsockopt(socket_.get(), SOL_SOCKET, SO_RCVBUFFORCE, &bytes, sizeof(bytes)))
        throw kernel_error(env, errno, "setsockopt", "enlarging the link event buffer");
    address.nl_family = AF_NETLINK;
    address.nl_groups = RTMGRP_LINK;
    if (bind(socket_.get(), reinterpret_cast<sockaddr *>(&address), sizeof(address)))
        throw kernel_error(env, errno, "bind", "subscribing to link events");
    delivery_ = std::make_shared<Delivery<LinkEvent>>(env, info[0].As<Napi::Function>(), "nodesentry link events",
                                                      info[2].As<Napi::Number>().Uint32Value(), to_js);
    reader_.start(
        socket_.get(), [this] { return receive(); }, [this] { stop(); });
}

LinkEvents::~LinkEvents() {
    stop();
}

bool LinkEvents::receive() {
    alignas(nlmsghdr) char buffer[32 << 10];
    ssize_t got = recv(socket_.get(), buffer, sizeof(buffer), MSG_DONTWAIT | MSG_TRUNC);

    if (got < 0 && errno != ENOBUFS)
        return errno == EAGAIN || errno == EINTR;
    if (got < 0 || got > static_cast<ssize_t>(sizeof(buffer))) {
        resync();
        return true;
    }
    auto length = static_cast<uint32_t>(got);
    for (auto *message = reinterpret_cast<nlmsghdr *>(buffer); NLMSG_OK(message, length);
         message = NLMSG_NEXT(message, length)) {
        bool is_link = message->nlmsg_type == RTM_NEWLINK || message->nlmsg_type == RTM_DELLINK;
        if (!is_link || message->nlmsg_len < NLMSG_LENGTH(sizeof(ifinfomsg)))
            continue;
        // Of AF_BRIDGE are ports: one that leaves its bridge sends RTM_DELLINK, and is still there.
        if (static_cast<const ifinfomsg *>(NLMSG_DATA(message))->ifi_family != AF_UNSPEC)
            continue;
        if (!delivery_->push(parse(message))) {
            resync();
            return true;
        }
    }
    return true;
}

// What is still in the socket is older than what was lost, and until it is empty the kernel adds nothing: throw it
// away, so that no event from before the loss arrives after everything was read anew.
void LinkEvents::resync() {
    LinkEvent lost = {};
    char byte;

    while (!reader_.stopping()) {
        if (recv(socket_.get(), &byte, sizeof(byte), MSG_DONTWAIT) < 0 && errno != ENOBUFS && errno != EINTR)
            break;
    }
    lost.resync = true;
    delivery_->restart(lost);
}

void LinkEvents::stop() {
    reader_.stop();
    delivery_->close();
    socket_.reset();
}

void LinkEvents::close(const Napi::CallbackInfo &) {
    stop();
}

} // namespace ns
