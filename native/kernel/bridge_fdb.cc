// What a bridge has learnt of a port, renewed as if the station had just sent something (bridge(8)).
#include <array>
#include <cstring>
#include <sys/socket.h>
#include <vector>

#include <linux/neighbour.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>

#include "common/errors.hh"
#include "functions.hh"

namespace ns {

namespace {

struct Station {
    std::array<uint8_t, 6> address;
    uint16_t vlan; // 0: none
};

struct Request {
    nlmsghdr header;
    ndmsg about;
    rtattr address_header;
    uint8_t address[8]; // padded to four bytes
    rtattr vlan_header;
    uint16_t vlan[2];
};

constexpr size_t kWithoutAttributes = NLMSG_LENGTH(sizeof(ndmsg));

// Learnt by the bridge itself: nobody's configuration, no driver's.
bool is_learnt(const ndmsg *about) {
    return !(about->ndm_state & (NUD_PERMANENT | NUD_NOARP)) && !(about->ndm_flags & (NTF_SELF | NTF_EXT_LEARNED));
}

void note(const nlmsghdr *message, int port, std::vector<Station> &found) {
    auto *about = static_cast<const ndmsg *>(NLMSG_DATA(message));
    int length = message->nlmsg_len - kWithoutAttributes;
    Station station = {};
    bool has_address = false;

    if (about->ndm_ifindex != port || !is_learnt(about))
        return;
    auto *attribute =
        reinterpret_cast<const rtattr *>(reinterpret_cast<const char *>(about) + NLMSG_ALIGN(sizeof(*about)));
    for (; RTA_OK(attribute, length); attribute = RTA_NEXT(attribute, length)) {
        if (attribute->rta_type == NDA_LLADDR && RTA_PAYLOAD(attribute) == station.address.size()) {
            memcpy(station.address.data(), RTA_DATA(attribute), station.address.size());
            has_address = true;
        }
        if (attribute->rta_type == NDA_VLAN && RTA_PAYLOAD(attribute) >= sizeof(station.vlan))
            memcpy(&station.vlan, RTA_DATA(attribute), sizeof(station.vlan));
    }
    if (has_address)
        found.push_back(station);
}

// Hands every message of the answer to `each`, until its end. Returns the errno that it ended with.
template <typename Each> int answer(Napi::Env env, int fd, uint32_t sequence, Each each) {
    alignas(nlmsghdr) char buffer[32 << 10];

    for (;;) {
        ssize_t got = recv(fd, buffer, sizeof(buffer), 0);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            throw kernel_error(env, errno, "recv", "asking a bridge for its stations");
        auto length = static_cast<uint32_t>(got);
        for (auto *message = reinterpret_cast<nlmsghdr *>(buffer); NLMSG_OK(message, length);
             message = NLMSG_NEXT(message, length)) {
            if (message->nlmsg_seq != sequence) // left over from a request that was given up
                continue;
            if (message->nlmsg_type == NLMSG_DONE)
                return 0;
            if (message->nlmsg_type == NLMSG_ERROR)
                return -static_cast<const nlmsgerr *>(NLMSG_DATA(message))->error;
            each(message);
        }
    }
}

void send_request(Napi::Env env, int fd, Request &request, const char *doing) {
    if (send(fd, &request, request.header.nlmsg_len, 0) < 0)
        throw kernel_error(env, errno, "send", doing);
}

// At most `most` of them. With NTF_USE the kernel does what it does for a frame of the station (br_fdb_update);
// without, an entry that is as it was keeps its age.
Napi::Value renew_stations(const Napi::CallbackInfo &info) {
    auto env = info.Env();
    int fd = fd_argument(info, 0);
    auto sequence = info[1].As<Napi::Number>().Uint32Value();
    int port = info[2].As<Napi::Number>().Int32Value();
    auto most = info[3].As<Napi::Number>().Uint32Value();
    std::vector<Station> stations;
    Request request = {};

    request.header = {.nlmsg_len = kWithoutAttributes,
                      .nlmsg_type = RTM_GETNEIGH,
                      .nlmsg_flags = NLM_F_REQUEST | NLM_F_DUMP,
                      .nlmsg_seq = sequence,
                      .nlmsg_pid = 0};
    request.about.ndm_family = PF_BRIDGE;
    request.about.ndm_ifindex = port;
    send_request(env, fd, request, "listing the stations at a port of a bridge");
    int error = answer(env, fd, sequence, [&](const nlmsghdr *message) {
        if (message->nlmsg_type == RTM_NEWNEIGH && message->nlmsg_len >= kWithoutAttributes && stations.size() < most)
            note(message, port, stations);
    });
    if (error)
        throw kernel_error(env, error, "recv", "listing the stations at a port of a bridge");

    for (const auto &[address, vlan] : stations) {
        request.header.nlmsg_type = RTM_NEWNEIGH;
        request.header.nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK;
        request.header.nlmsg_len = vlan ? sizeof(request) : offsetof(Request, vlan_header);
        request.about.ndm_state = NUD_REACHABLE;
        request.about.ndm_flags = NTF_MASTER | NTF_USE;
        request.address_header = {.rta_len = RTA_LENGTH(6), .rta_type = NDA_LLADDR};
        memcpy(request.address, address.data(), address.size());
        request.vlan_header = {.rta_len = RTA_LENGTH(2), .rta_type = NDA_VLAN};
        request.vlan[0] = vlan;
        send_request(env, fd, request, "renewing a station at a port of a bridge");
        error = answer(env, fd, sequence, [](const nlmsghdr *) {});
        if (error)
            throw kernel_error(env, error, "recv", "renewing a station at a port of a bridge");
    }
    return Napi::Number::New(env, static_cast<double>(stations.size()));
}

} // namespace

void define_bridge_fdb(Napi::Env env, Napi::Object exports) {
    exports.Set("renewStations", Napi::Function::New(env, renew_stations));
}

} // namespace ns
