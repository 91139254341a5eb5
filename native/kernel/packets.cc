// Frames sent from inside another network namespace, by a packet socket (packet(7)).
#include <fcntl.h>
#include <linux/if_packet.h>
#include <net/if.h>
#include <sys/socket.h>
#include <vector>

#include "common/errors.hh"
#include "common/visit.hh"
#include "functions.hh"

namespace ns {

namespace {

// Closing a packet socket waits for a grace period of RCU, 10 to 25 ms: never on the thread of the event loop.
class SendFrames : public Napi::AsyncWorker {
  public:
    SendFrames(Napi::Env env, std::string netns, std::string interface, std::vector<std::vector<uint8_t>> frames)
        : AsyncWorker(env), deferred_(env), netns_(std::move(netns)), interface_(std::move(interface)),
          frames_(std::move(frames)) {}

    Napi::Promise promise() const {
        return deferred_.Promise();
    }

  protected:
    void Execute() override {
        Fd target(open(netns_.c_str(), O_RDONLY | O_CLOEXEC));

        if (!target)
            return failed(errno, "open", "opening the network namespace " + netns_);
        Visit visit(target.get());
        if (visit.error())
            return failed(visit.error(), "setns", "entering the network namespace " + netns_);
        send();
    }

    void OnOK() override {
        deferred_.Resolve(Env().Undefined());
    }
    void OnError(const Napi::Error &) override {
        deferred_.Reject(kernel_error(Env(), errno_, syscall_, what_).Value());
    }

  private:
    void send() {
        sockaddr_ll to = {};
        to.sll_family = AF_PACKET;
        to.sll_ifindex = static_cast<int>(if_nametoindex(interface_.c_str()));
        if (!to.sll_ifindex)
            return failed(errno, "if_nametoindex", "looking for " + interface_ + " in " + netns_);
        // Protocol 0: it receives nothing.
        Fd socket(::socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0));
        if (!socket)
            return failed(errno, "socket", "opening a packet socket in " + netns_);
        for (const auto &frame : frames_) {
            if (sendto(socket.get(), frame.data(), frame.size(), 0, reinterpret_cast<sockaddr *>(&to), sizeof(to)) < 0)
                return failed(errno, "sendto", "sending by " + interface_ + " in " + netns_);
        }
    }

    void failed(int error, const char *syscall, std::string what) {
        errno_ = error;
        syscall_ = syscall;
        what_ = std::move(what);
        SetError(what_);
    }

    Napi::Promise::Deferred deferred_;
    std::string netns_, interface_;
    std::vector<std::vector<uint8_t>> frames_;
    int errno_ = 0;
    const char *syscall_ = "";
    std::string what_;
};

Napi::Value send_frames(const Napi::CallbackInfo &info) {
    auto list = info[2].As<Napi::Array>();
    std::vector<std::vector<uint8_t>> frames;

    for (uint32_t i = 0; i < list.Length(); i++) {
        auto frame = list.Get(i).As<Napi::Uint8Array>();
        frames.emplace_back(frame.Data(), frame.Data() + frame.ByteLength());
    }
    auto worker = new SendFrames(info.Env(), text_argument(info, 0), text_argument(info, 1), std::move(frames));
    auto promise = worker->promise();
    worker->Queue();
    return promise;
}

} // namespace

void define_packets(Napi::Env env, Napi::Object exports) {
    exports.Set("sendFrames", Napi::Function::New(env, send_frames));
}

} // namespace ns
