// A socket that takes datagrams and tells of each where it was going, read by a thread of its own.
#include <array>
#include <cstring>
#include <memory>
#include <vector>

#include "common/delivery.hh"
#include "common/reader.hh"
#include "datagrams.hh"
#include "functions.hh"

#ifndef IPV6_RECVORIGDSTADDR
#define IPV6_RECVORIGDSTADDR 74
#endif
#ifndef IPV6_ORIGDSTADDR
#define IPV6_ORIGDSTADDR IPV6_RECVORIGDSTADDR
#endif

namespace ns {

namespace {

constexpr unsigned kBatch = 32;
constexpr int kReceiveBuffer = 8 << 20;

struct Datagram {
    SocketAddress from;
    SocketAddress to;
    std::vector<uint8_t> data;
};

// IPv4 as IPv4, whatever the socket's family.
void describe(Napi::Object to, const char *ip, const char *port, const SocketAddress &address) {
    char text[INET6_ADDRSTRLEN] = "";
    bool is_v6 = address.any.sa_family == AF_INET6;

    if (is_v6 && IN6_IS_ADDR_V4MAPPED(&address.v6.sin6_addr))
        inet_ntop(AF_INET, &address.v6.sin6_addr.s6_addr[12], text, sizeof(text));
    else if (is_v6)
        inet_ntop(AF_INET6, &address.v6.sin6_addr, text, sizeof(text));
    else
        inet_ntop(AF_INET, &address.v4.sin_addr, text, sizeof(text));
    to.Set(ip, text);
    to.Set(port, ntohs(is_v6 ? address.v6.sin6_port : address.v4.sin_port));
}

bool original_of(msghdr &message, SocketAddress &to) {
    for (cmsghdr *entry = CMSG_FIRSTHDR(&message); entry; entry = CMSG_NXTHDR(&message, entry)) {
        bool is_v4 = entry->cmsg_level == IPPROTO_IP && entry->cmsg_type == IP_ORIGDSTADDR &&
                     entry->cmsg_len >= CMSG_LEN(sizeof(sockaddr_in));
        bool is_v6 = entry->cmsg_level == IPPROTO_IPV6 && entry->cmsg_type == IPV6_ORIGDSTADDR &&
                     entry->cmsg_len >= CMSG_LEN(sizeof(sockaddr_in6));
        if (is_v4)
            memcpy(&to.v4, CMSG_DATA(entry), sizeof(to.v4));
        if (is_v6)
            memcpy(&to.v6, CMSG_DATA(entry), sizeof(to.v6));
        if (is_v4 || is_v6)
            return true;
    }
    return false;
}

Napi::Value to_js(Napi::Env env, const Datagram &datagram) {
    auto result = Napi::Object::New(env);
    describe(result, "fromIp", "fromPort", datagram.from);
    describe(result, "toIp", "toPort", datagram.to);
    result.Set("data", Napi::Buffer<uint8_t>::Copy(env, datagram.data.data(), datagram.data.size()));
    return result;
}

class DatagramListener : public Napi::ObjectWrap<DatagramListener> {
  public:
    static Napi::Function define(Napi::Env env) {
        return DefineClass(env, "DatagramListener",
                           {InstanceMethod("close", &DatagramListener::close),
                            InstanceAccessor<&DatagramListener::port>("port"),
                            InstanceAccessor<&DatagramListener::lost>("lost")});
    }

    // (host, port, v6only, queue limit, callback)
    explicit DatagramListener(const Napi::CallbackInfo &info)
        : Napi::ObjectWrap<DatagramListener>(info), reader_(info.Env()) {
        auto env = info.Env();
        std::string host = text_argument(info, 0);
        std::string doing = "taking datagrams at " + host + " port " + info[1].ToString().Utf8Value();
        auto address = parsed(env, host, info[1].As<Napi::Number>().Uint32Value(), doing);
        bool is_v6 = address.any.sa_family == AF_INET6;
        bool v6only = info[2].As<Napi::Boolean>();

        socket_.reset(socket(address.any.sa_family, SOCK_DGRAM | SOCK_CLOEXEC, 0));
        if (!socket_)
            throw kernel_error(env, errno, "socket", doing);
        int fd = socket_.get();
        if (is_v6) {
            set(env, fd, IPPROTO_IPV6, IPV6_V6ONLY, v6only, doing);
            set(env, fd, IPPROTO_IPV6, IPV6_RECVORIGDSTADDR, 1, doing);
        }
        if (!is_v6 || !v6only)
            set(env, fd, IPPROTO_IP, IP_RECVORIGDSTADDR, 1, doing);
        // Beyond net.core.rmem_max where that is allowed.
        if (setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &kReceiveBuffer, sizeof(kReceiveBuffer)))
            set(env, fd, SOL_SOCKET, SO_RCVBUF, kReceiveBuffer, doing);
        if (bind(fd, &address.any, size_of(address)))
            throw kernel_error(env, errno, "bind", doing);
        socklen_t length = sizeof(address);
        if (getsockname(fd, &address.any, &length))
            throw kernel_error(env, errno, "getsockname", doing);
        port_ = ntohs(is_v6 ? address.v6.sin6_port : address.v4.sin_port);
        delivery_ = std::make_shared<Delivery<Datagram>>(env, info[4].As<Napi::Function>(), "nodesentry datagrams",
                                                         info[3].As<Napi::Number>().Uint32Value(), to_js);
        reader_.start(
            fd, [this] { return receive(); }, [this] { stop(); });
    }

    ~DatagramListener() override {
        stop();
    }

  private:
    bool receive() {
        std::array<mmsghdr, kBatch> messages = {};
        std::array<iovec, kBatch> parts;

        for (unsigned index = 0; index < kBatch; index++) {
            auto &buffer = buffers_[index];
            parts[index] = {buffer.data.data(), buffer.data.size()};
            auto &header = messages[index].msg_hdr;
            header.msg_name = &buffer.from;
            header.msg_namelen = sizeof(buffer.from);
            header.msg_iov = &parts[index];
            header.msg_iovlen = 1;
            header.msg_control = buffer.control;
            header.msg_controllen = sizeof(buffer.control);
        }
        int got = recvmmsg(socket_.get(), messages.data(), kBatch, MSG_DONTWAIT, nullptr);
        for (int index = 0; index < got; index++) {
            auto &buffer = buffers_[index];
            Datagram datagram = {};
            datagram.from = buffer.from;
            if (!original_of(messages[index].msg_hdr, datagram.to))
                continue;
            auto *data = buffer.data.data();
            datagram.data.assign(data, data + messages[index].msg_len);
            delivery_->push(std::move(datagram));
        }
        return got >= 0 || errno == EAGAIN || errno == EINTR || errno == ECONNREFUSED;
    }

    Napi::Value port(const Napi::CallbackInfo &info) {
        return Napi::Number::New(info.Env(), port_);
    }

    Napi::Value lost(const Napi::CallbackInfo &info) {
        return Napi::Number::New(info.Env(), static_cast<double>(delivery_->lost()));
    }

    void stop() {
        reader_.stop();
        if (delivery_)
            delivery_->close();
        socket_.reset();
    }

    void close(const Napi::CallbackInfo &) {
        stop();
    }

    struct Buffer {
        SocketAddress from;
        alignas(cmsghdr) char control[CMSG_SPACE(sizeof(sockaddr_in6)) * 2];
        std::vector<uint8_t> data = std::vector<uint8_t>(kMostDatagramBytes);
    };

    std::vector<Buffer> buffers_ = std::vector<Buffer>(kBatch);
    int port_ = 0;
    // The reader comes last: its thread uses the others.
    Fd socket_;
    std::shared_ptr<Delivery<Datagram>> delivery_;
    Reader reader_;
};

} // namespace

void define_datagram_listener(Napi::Env env, Napi::Object exports) {
    exports.Set("DatagramListener", DatagramListener::define(env));
}

} // namespace ns
