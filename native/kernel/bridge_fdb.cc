// What a bridge has learnt of a port, renewed as if the station had just sent something (bridge(8)).
#include <array>
#include <cstring>
#include <vector>

#include <linux/neighbour.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>

#include "common/errors.hh"
#include "common/netlink.hh"
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

// At most `most` of them. With NTF_USE the kernel does what it does for a frame of the station (br_fdb_update);
// without, an entry that is as it was keeps its age.
Napi::Value renew_stations(const Napi::CallbackInfo &info) {
    auto env = info.Env();
    int fd = fd_argument(info, 0);
    int port = info[2].As<Napi::Number>().Int32Value();
    auto most = info[3].As<Napi::Number>().Uint32Value();
    std::vector<Station> stations;
    Request request = {};

    request.header = {.nlmsg_len = kWithoutAttributes,
                      .nlmsg_type = RTM_GETNEIGH,
                      .nlmsg_flags = NLM_F_REQUEST | NLM_F_DUMP,
                      .nlmsg_seq = info[1].As<Napi::Number>().Uint32Value(),
                      .nlmsg_pid = 0};
    request.about.ndm_family = PF_BRIDGE;
    request.about.ndm_ifindex = port;
    const char *doing = "listing the stations at a port of a bridge";
    int error = ask(env, fd, request.header, doing, [&](const nlmsghdr *message) {
        if (message->nlmsg_type == RTM_NEWNEIGH && message->nlmsg_len >= kWithoutAttributes && stations.size() < most)
            note(message, port, stations);
    });
    if (error)
        throw kernel_error(env, error, "recv", doing);

    doing = "renewing a station at a port of a bridge";
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
        error = ask(env, fd, request.header, doing, [](const nlmsghdr *) {});
        if (error)
            throw kernel_error(env, error, "recv", doing);
    }
    return Napi::Number::New(env, static_cast<double>(stations.size()));
}

} // namespace

void define_bridge_fdb(Napi::Env env, Napi::Object exports) {
    exports.Set("renewStations", Napi::Function::New(env, renew_stations));
}

} // namespace ns
