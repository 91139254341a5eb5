// Frames sent from inside a pod's network namespace, so that they reach the host as the pod's own do.
#include <net/if.h>
#include <sys/socket.h>

#include <linux/if_packet.h>

#include "common/errors.hh"
#include "functions.hh"
#include "visit.hh"

namespace ns {

namespace {

// Protocol 0: the socket only sends, so the kernel has no receive hook to take away when it is closed.
void send_frames(const Napi::CallbackInfo &info) {
    auto env = info.Env();
    auto frames = info[2].As<Napi::Array>();
    std::string name = text_argument(info, 1);
    sockaddr_ll to = {};

    Visit visit(env, fd_argument(info, 0));
    Fd fd(socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, 0));
    if (!fd)
        throw kernel_error(env, errno, "socket", "opening a packet socket in a pod");
    to.sll_family = AF_PACKET;
    to.sll_ifindex = static_cast<int>(if_nametoindex(name.c_str()));
    if (!to.sll_ifindex)
        throw kernel_error(env, errno, "ioctl", "looking for " + name + " in a pod");
    for (uint32_t i = 0; i < frames.Length(); i++) {
        auto frame = frames.Get(i).As<Napi::Uint8Array>();
        if (sendto(fd.get(), frame.Data(), frame.ByteLength(), MSG_DONTWAIT, reinterpret_cast<sockaddr *>(&to),
                   sizeof(to)) < 0)
            throw kernel_error(env, errno, "sendto", "sending a frame from inside a pod");
    }
}

} // namespace

void define_frames(Napi::Env env, Napi::Object exports) {
    exports.Set("sendFrames", Napi::Function::New(env, send_frames));
}

} // namespace ns
