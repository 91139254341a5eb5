// Both ends of TCP connections, by the cookies of their sockets: only a look at all of them tells.
#include <arpa/inet.h>
#include <string>
#include <unordered_set>
#include <vector>

#include "functions.hh"
#include "sock_diag.hh"

namespace ns {

namespace {

constexpr const char *kDoing = "looking for a socket by its cookie";

struct Ends {
    uint64_t cookie;
    std::string local, peer;
    uint16_t local_port, peer_port;
};

// An IPv4 address that an IPv6 socket has is told as IPv4.
std::string text_of(uint8_t family, const __be32 *address) {
    char text[INET6_ADDRSTRLEN] = "";
    bool is_mapped = family == AF_INET6 && IN6_IS_ADDR_V4MAPPED(reinterpret_cast<const in6_addr *>(address));

    inet_ntop(is_mapped ? AF_INET : family, is_mapped ? address + 3 : address, text, sizeof(text));
    return text;
}

// On a thread of the pool: a busy proxy has tens of thousands.
class EndsSearch : public Napi::AsyncWorker {
  public:
    EndsSearch(Napi::Env env, std::unordered_set<uint64_t> wanted)
        : Napi::AsyncWorker(env), deferred_(Napi::Promise::Deferred::New(env)), fd_(open_diag(env)),
          wanted_(std::move(wanted)) {}
    Napi::Promise promise() const {
        return deferred_.Promise();
    }

  protected:
    void Execute() override {
        for (uint8_t family : {AF_INET, AF_INET6}) {
            DiagRequest request = diag_request(family, ~kListen);
            if (send(fd_.get(), &request, sizeof(request), 0) < 0)
                return failed(errno, "send");
            int error = try_answer(fd_.get(), request.header, [&](const nlmsghdr *message) {
                auto *diag = diag_of(message);
                if (diag && wanted_.count(cookie_of(diag)))
                    found_.push_back({cookie_of(diag), text_of(diag->idiag_family, diag->id.idiag_src),
                                      text_of(diag->idiag_family, diag->id.idiag_dst), ntohs(diag->id.idiag_sport),
                                      ntohs(diag->id.idiag_dport)});
            });
            if (error)
                return failed(error, "recv");
        }
    }
    void OnOK() override {
        auto env = Env();
        auto result = Napi::Array::New(env, found_.size());
        auto end = [&](const std::string &ip, uint16_t port) {
            auto object = Napi::Object::New(env);
            object.Set("ip", ip);
            object.Set("port", port);
            return object;
        };
        for (size_t i = 0; i < found_.size(); i++) {
            auto entry = Napi::Object::New(env);
            entry.Set("cookie", Napi::BigInt::New(env, found_[i].cookie));
            entry.Set("local", end(found_[i].local, found_[i].local_port));
            entry.Set("peer", end(found_[i].peer, found_[i].peer_port));
            result.Set(static_cast<uint32_t>(i), entry);
        }
        deferred_.Resolve(result);
    }
    void OnError(const Napi::Error &) override {
        deferred_.Reject(kernel_error(Env(), errno_, syscall_, kDoing).Value());
    }

  private:
    void failed(int error, const char *syscall) {
        errno_ = error;
        syscall_ = syscall;
        SetError(kDoing);
    }

    Napi::Promise::Deferred deferred_;
    Fd fd_;
    std::unordered_set<uint64_t> wanted_;
    std::vector<Ends> found_;
    int errno_ = 0;
    const char *syscall_ = "";
};

// Of each connection that is not over: peer's and own address (16 bytes each, IPv4 mapped), peer's and own port (2
// each, little-endian), packed. On a thread of the pool as well.
class ConnectionList : public Napi::AsyncWorker {
  public:
    explicit ConnectionList(Napi::Env env)
        : Napi::AsyncWorker(env), deferred_(Napi::Promise::Deferred::New(env)), fd_(open_diag(env)) {}
    Napi::Promise promise() const {
        return deferred_.Promise();
    }

  protected:
    void Execute() override {
        for (uint8_t family : {AF_INET, AF_INET6}) {
            DiagRequest request = diag_request(family, ~(kListen | 1 << TCP_TIME_WAIT | 1 << TCP_CLOSE));
            error_ = send(fd_.get(), &request, sizeof(request), 0) < 0
                         ? errno
                         : try_answer(fd_.get(), request.header, [&](const nlmsghdr *message) {
                               if (auto *diag = diag_of(message))
                                   add(diag);
                           });
            if (error_)
                return SetError(kListing);
        }
    }
    void OnOK() override {
        deferred_.Resolve(Napi::Buffer<uint8_t>::Copy(Env(), packed_.data(), packed_.size()));
    }
    void OnError(const Napi::Error &) override {
        deferred_.Reject(kernel_error(Env(), error_, "recv", kListing).Value());
    }

  private:
    static constexpr const char *kListing = "listing connections";

    void add(const inet_diag_msg *diag) {
        for (const __be32 *address : {diag->id.idiag_dst, diag->id.idiag_src}) {
            Address bytes = address_of(diag, address);
            packed_.insert(packed_.end(), bytes.begin(), bytes.end());
        }
        for (uint16_t port : {ntohs(diag->id.idiag_dport), ntohs(diag->id.idiag_sport)}) {
            packed_.push_back(port & 0xff);
            packed_.push_back(port >> 8);
        }
    }

    Napi::Promise::Deferred deferred_;
    Fd fd_;
    std::vector<uint8_t> packed_;
    int error_ = 0;
};

Napi::Value tcp_open(const Napi::CallbackInfo &info) {
    auto *list = new ConnectionList(info.Env());
    auto promise = list->promise();
    list->Queue();
    return promise;
}

Napi::Value tcp_ends(const Napi::CallbackInfo &info) {
    auto cookies = info[0].As<Napi::Array>();
    std::unordered_set<uint64_t> wanted;
    bool is_lossless;

    for (uint32_t i = 0; i < cookies.Length(); i++)
        wanted.insert(cookies.Get(i).As<Napi::BigInt>().Uint64Value(&is_lossless));
    auto *search = new EndsSearch(info.Env(), std::move(wanted));
    auto promise = search->promise();
    search->Queue();
    return promise;
}

} // namespace

void define_socket_ends(Napi::Env env, Napi::Object exports) {
    exports.Set("tcpOpen", Napi::Function::New(env, tcp_open));
    exports.Set("tcpEnds", Napi::Function::New(env, tcp_ends));
}

} // namespace ns
