// Answers to datagrams, as if from where those were going.
#include <cstddef>
#include <cstring>
#include <netinet/udp.h>

#include "datagrams.hh"
#include "functions.hh"

namespace ns {

namespace {

// Nobody is sent anything there (RFC 7600; RFC 6666): a raw socket that is bound to it is given no copies.
constexpr const char *kNowhereV4 = "192.0.0.8";
constexpr const char *kNowhereV6 = "100::1";

// Of one's complement (RFC 1071), in network byte order.
uint32_t sum_of(const void *bytes, size_t size, uint32_t sum) {
    auto *at = static_cast<const uint8_t *>(bytes);

    for (; size > 1; size -= 2, at += 2)
        sum += at[0] << 8 | at[1];
    return size ? sum + (at[0] << 8) : sum;
}

uint16_t folded(uint32_t sum) {
    while (sum >> 16)
        sum = (sum & 0xffff) + (sum >> 16);
    return htons(~sum & 0xffff);
}

// Sends datagrams that bear any source address and port. A socket bound to one would take what is for a service of this
// machine there; this one is bound to nobody's.
class DatagramSender : public Napi::ObjectWrap<DatagramSender> {
  public:
    static Napi::Function define(Napi::Env env) {
        return DefineClass(
            env, "DatagramSender",
            {InstanceMethod("send", &DatagramSender::send), InstanceMethod("close", &DatagramSender::close)});
    }

    explicit DatagramSender(const Napi::CallbackInfo &info) : Napi::ObjectWrap<DatagramSender>(info) {
        auto env = info.Env();
        const char *doing = "opening a socket that answers datagrams";

        is_v6_ = info[0].As<Napi::Number>().Int32Value() == 6;
        Fd fd(socket(is_v6_ ? AF_INET6 : AF_INET, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, IPPROTO_UDP));
        if (!fd)
            throw kernel_error(env, errno, "socket", doing);
        if (is_v6_) {
            set(env, fd.get(), IPPROTO_IPV6, IPV6_TRANSPARENT, 1, doing);
            set(env, fd.get(), IPPROTO_IPV6, IPV6_CHECKSUM, offsetof(udphdr, check), doing);
        } else {
            set(env, fd.get(), IPPROTO_IP, IP_TRANSPARENT, 1, doing);
        }
        auto nowhere = parsed(env, is_v6_ ? kNowhereV6 : kNowhereV4, 0, doing);
        if (bind(fd.get(), &nowhere.any, size_of(nowhere)))
            throw kernel_error(env, errno, "bind", doing);
        fd_ = fd.release();
    }

    ~DatagramSender() {
        if (fd_ >= 0)
            ::close(fd_);
    }

  private:
    // Returns whether it was sent; not, where there is no room at this moment. Throws for any other reason.
    Napi::Value send(const Napi::CallbackInfo &info) {
        auto env = info.Env();
        const char *doing = "answering a datagram";
        auto from = parsed(env, info[0].As<Napi::String>(), info[1].As<Napi::Number>().Uint32Value(), doing);
        auto to = parsed(env, info[2].As<Napi::String>(), info[3].As<Napi::Number>().Uint32Value(), doing);
        auto data = info[4].As<Napi::Uint8Array>();
        int family = is_v6_ ? AF_INET6 : AF_INET;

        if (fd_ < 0 || from.any.sa_family != family || to.any.sa_family != family)
            throw kernel_error(env, EAFNOSUPPORT, "sendmsg", doing);
        if (data.ByteLength() > kMostDatagramBytes - sizeof(udphdr) - 1)
            throw kernel_error(env, EMSGSIZE, "sendmsg", doing);
        udphdr header = {};
        header.source = is_v6_ ? from.v6.sin6_port : from.v4.sin_port;
        header.dest = is_v6_ ? to.v6.sin6_port : to.v4.sin_port;
        header.len = htons(sizeof(header) + data.ByteLength());
        if (!is_v6_) {
            uint32_t sum = IPPROTO_UDP + sizeof(header) + data.ByteLength();
            sum = sum_of(&from.v4.sin_addr, 4, sum_of(&to.v4.sin_addr, 4, sum));
            header.check = folded(sum_of(data.Data(), data.ByteLength(), sum_of(&header, sizeof(header), sum)));
            if (!header.check)
                header.check = 0xffff; // RFC 768: 0 says that there is none
        }

        iovec parts[] = {{&header, sizeof(header)}, {data.Data(), data.ByteLength()}};
        alignas(cmsghdr) char control[CMSG_SPACE(sizeof(in6_pktinfo))] = {};
        msghdr message = {};
        message.msg_iov = parts;
        message.msg_iovlen = 2;
        message.msg_control = control;
        message.msg_controllen = sizeof(control);
        cmsghdr *entry = CMSG_FIRSTHDR(&message);
        auto bear = [&](int level, int type, const auto &source) {
            entry->cmsg_level = level;
            entry->cmsg_type = type;
            entry->cmsg_len = CMSG_LEN(sizeof(source));
            memcpy(CMSG_DATA(entry), &source, sizeof(source));
            message.msg_controllen = CMSG_SPACE(sizeof(source));
        };
        if (is_v6_) {
            in6_pktinfo source = {};
            source.ipi6_addr = from.v6.sin6_addr;
            bear(IPPROTO_IPV6, IPV6_PKTINFO, source);
        } else {
            in_pktinfo source = {};
            source.ipi_spec_dst = from.v4.sin_addr;
            bear(IPPROTO_IP, IP_PKTINFO, source);
        }
        // To a raw socket a port means a protocol.
        if (is_v6_)
            to.v6.sin6_port = 0;
        else
            to.v4.sin_port = 0;
        message.msg_name = &to;
        message.msg_namelen = size_of(to);
        if (sendmsg(fd_, &message, 0) >= 0)
            return Napi::Boolean::New(env, true);
        if (errno == EAGAIN || errno == ENOBUFS)
            return Napi::Boolean::New(env, false);
        throw kernel_error(env, errno, "sendmsg", doing);
    }

    void close(const Napi::CallbackInfo &) {
        if (fd_ >= 0)
            ::close(fd_);
        fd_ = -1;
    }

    int fd_ = -1;
    bool is_v6_ = false;
};

} // namespace

void define_datagram_sender(Napi::Env env, Napi::Object exports) {
    exports.Set("DatagramSender", DatagramSender::define(env));
}

} // namespace ns
