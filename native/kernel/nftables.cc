// The little of nf_tables that is asked every second: has anybody changed the ruleset, and elements of a set of ours
// put in or taken out. Everything else goes through the nft command. Messages:
// include/uapi/linux/netfilter/nf_tables.h.
#include <arpa/inet.h>
#include <sys/socket.h>
#include <vector>

#include <linux/netfilter.h>
#include <linux/netfilter/nf_tables.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/netlink.h>

#include "common/errors.hh"
#include "common/netlink.hh"
#include "functions.hh"

namespace ns {

namespace {

constexpr size_t kElementsPerMessage = 1000; // the nested list has a length of 16 bits
constexpr int kSendBytes = 4 << 20;
constexpr timeval kPatience = {.tv_sec = 2, .tv_usec = 0};

class Message {
  public:
    Message(std::vector<uint8_t> &to, uint16_t type, uint16_t flags, uint8_t family, uint16_t resource, uint32_t seq)
        : to_(to), start_(to.size()) {
        nlmsghdr header = {.nlmsg_len = 0, .nlmsg_type = type, .nlmsg_flags = flags, .nlmsg_seq = seq, .nlmsg_pid = 0};
        nfgenmsg generic = {.nfgen_family = family, .version = NFNETLINK_V0, .res_id = htons(resource)};
        append(&header, sizeof(header));
        append(&generic, sizeof(generic));
    }
    ~Message() {
        auto length = static_cast<uint32_t>(to_.size() - start_);
        memcpy(&to_[start_ + offsetof(nlmsghdr, nlmsg_len)], &length, sizeof(length));
    }
    void attribute(uint16_t type, const void *data, size_t length) {
        size_t at = open(type);
        append(data, length);
        close(at);
    }
    size_t open(uint16_t type) {
        nlattr header = {.nla_len = 0, .nla_type = type};
        size_t at = to_.size();
        append(&header, sizeof(header));
        return at;
    }
    void close(size_t at) {
        auto length = static_cast<uint16_t>(to_.size() - at);
        memcpy(&to_[at], &length, sizeof(length));
        to_.resize((to_.size() + NLA_ALIGNTO - 1) / NLA_ALIGNTO * NLA_ALIGNTO);
    }

  private:
    void append(const void *data, size_t length) {
        auto *bytes = static_cast<const uint8_t *>(data);
        to_.insert(to_.end(), bytes, bytes + length);
    }

    std::vector<uint8_t> &to_;
    size_t start_;
};

constexpr uint16_t nft(uint16_t type) {
    return NFNL_SUBSYS_NFTABLES << 8 | type;
}

// Kept open by its owner: closing one makes the kernel wait for whatever it still has to free.
Napi::Value open_netfilter(const Napi::CallbackInfo &info) {
    auto env = info.Env();
    Fd fd(socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_NETFILTER));
    sockaddr_nl address = {};
    int bytes = kSendBytes;

    address.nl_family = AF_NETLINK;
    if (!fd || bind(fd.get(), reinterpret_cast<sockaddr *>(&address), sizeof(address)) ||
        setsockopt(fd.get(), SOL_SOCKET, SO_RCVTIMEO, &kPatience, sizeof(kPatience)) ||
        setsockopt(fd.get(), SOL_SOCKET, SO_SNDBUFFORCE, &bytes, sizeof(bytes)))
        throw kernel_error(env, errno, "socket", "opening a netfilter socket");
    return Napi::Number::New(env, fd.release());
}

void send_all(Napi::Env env, int fd, const std::vector<uint8_t> &bytes) {
    sockaddr_nl kernel = {};

    kernel.nl_family = AF_NETLINK;
    if (sendto(fd, bytes.data(), bytes.size(), 0, reinterpret_cast<sockaddr *>(&kernel), sizeof(kernel)) < 0)
        throw kernel_error(env, errno, "sendto", "asking nf_tables");
}

Napi::Value generation(const Napi::CallbackInfo &info) {
    auto env = info.Env();
    int fd = fd_argument(info, 0);
    uint32_t seq = info[1].As<Napi::Number>().Uint32Value();
    std::vector<uint8_t> request;
    uint32_t id = 0;
    bool found = false;

    Message(request, nft(NFT_MSG_GETGEN), NLM_F_REQUEST, AF_UNSPEC, 0, seq);
    send_all(env, fd, request);
    receive(env, fd, "waiting for nf_tables", [&](const nlmsghdr *message) {
        if (message->nlmsg_seq < seq)
            return true;
        if (message->nlmsg_type == NLMSG_ERROR)
            throw kernel_error(env, error_of(message), "recv", "asking for the generation of the nftables ruleset");
        if (message->nlmsg_type != nft(NFT_MSG_NEWGEN) || message->nlmsg_len < NLMSG_LENGTH(sizeof(nfgenmsg)))
            return true;
        auto *at = static_cast<const char *>(NLMSG_DATA(message)) + NLMSG_ALIGN(sizeof(nfgenmsg));
        auto *end = reinterpret_cast<const char *>(message) + message->nlmsg_len;
        while (at + sizeof(nlattr) <= end) {
            auto *attribute = reinterpret_cast<const nlattr *>(at);
            if (attribute->nla_len < sizeof(nlattr) || at + attribute->nla_len > end)
                break;
            if ((attribute->nla_type & NLA_TYPE_MASK) == NFTA_GEN_ID && attribute->nla_len >= NLA_HDRLEN + sizeof(id)) {
                memcpy(&id, at + NLA_HDRLEN, sizeof(id));
                found = true;
            }
            at += (attribute->nla_len + NLA_ALIGNTO - 1) / NLA_ALIGNTO * NLA_ALIGNTO;
        }
        return false;
    });
    if (!found)
        throw kernel_error(env, EPROTO, "recv", "reading the generation of the nftables ruleset");
    return Napi::Number::New(env, ntohl(id));
}

struct Change {
    std::string table, set;
    size_t key_size;
};

// Returns how many acknowledgements will come.
uint32_t add_elements(std::vector<uint8_t> &to, const Change &change, bool remove, const Napi::Uint8Array &keys,
                      uint32_t &seq) {
    uint32_t messages = 0;
    size_t total = keys.ByteLength() / change.key_size;

    for (size_t first = 0; first < total; first += kElementsPerMessage, messages++) {
        uint16_t flags = NLM_F_REQUEST | NLM_F_ACK | (remove ? 0 : NLM_F_CREATE);
        Message message(to, nft(remove ? NFT_MSG_DELSETELEM : NFT_MSG_NEWSETELEM), flags, NFPROTO_INET, 0, seq++);
        message.attribute(NFTA_SET_ELEM_LIST_TABLE, change.table.c_str(), change.table.size() + 1);
        message.attribute(NFTA_SET_ELEM_LIST_SET, change.set.c_str(), change.set.size() + 1);
        size_t list = message.open(NFTA_SET_ELEM_LIST_ELEMENTS | NLA_F_NESTED);
        for (size_t i = first; i < total && i < first + kElementsPerMessage; i++) {
            size_t element = message.open(NFTA_LIST_ELEM | NLA_F_NESTED);
            size_t key = message.open(NFTA_SET_ELEM_KEY | NLA_F_NESTED);
            message.attribute(NFTA_DATA_VALUE, keys.Data() + i * change.key_size, change.key_size);
            message.close(key);
            message.close(element);
        }
        message.close(list);
    }
    return messages;
}

// One transaction: all of it or nothing. Elements to add may be there already; one to remove that is absent is ENOENT.
void change_elements(const Napi::CallbackInfo &info) {
    auto env = info.Env();
    int fd = fd_argument(info, 0);
    uint32_t first = info[1].As<Napi::Number>().Uint32Value(), seq = first;
    Change change = {text_argument(info, 2), text_argument(info, 3), info[4].As<Napi::Number>().Uint32Value()};
    std::vector<uint8_t> batch;
    int error = 0;

    Message(batch, NFNL_MSG_BATCH_BEGIN, NLM_F_REQUEST, AF_UNSPEC, NFNL_SUBSYS_NFTABLES, seq++);
    uint32_t expected = add_elements(batch, change, false, info[5].As<Napi::Uint8Array>(), seq);
    expected += add_elements(batch, change, true, info[6].As<Napi::Uint8Array>(), seq);
    Message(batch, NFNL_MSG_BATCH_END, NLM_F_REQUEST, AF_UNSPEC, NFNL_SUBSYS_NFTABLES, seq++);
    if (expected == 0)
        return;
    send_all(env, fd, batch);
    receive(env, fd, "waiting for nf_tables", [&](const nlmsghdr *message) {
        if (message->nlmsg_seq < first || message->nlmsg_type != NLMSG_ERROR)
            return true;
        error = error_of(message);
        return error == 0 && --expected > 0;
    });
    if (error)
        throw kernel_error(env, error, "sendto", "changing the nftables set " + change.set);
}

} // namespace

void define_nftables(Napi::Env env, Napi::Object exports) {
    exports.Set("openNetfilter", Napi::Function::New(env, open_netfilter));
    exports.Set("nftGeneration", Napi::Function::New(env, generation));
    exports.Set("nftChangeElements", Napi::Function::New(env, change_elements));
}

} // namespace ns
