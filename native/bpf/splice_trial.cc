// What the kernel makes of a socket whose queue is filled by another one (bpf/splice-trial.bpf.c): each trial does what
// applications do with sockets, and says whether it came out as over plain TCP.
#include <chrono>
#include <poll.h>
#include <thread>
#include <vector>

#include <netinet/in.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include <linux/bpf.h>
#include <linux/sock_diag.h>

#include <bpf/bpf.h>

#include "common/errors.hh"
#include "functions.hh"

namespace ns {

namespace {

constexpr size_t kBytes = 1000;
constexpr auto kPatience = std::chrono::milliseconds(20);

struct Pair {
    Fd sender, receiver;
};

// Over the loopback interface; false with errno where that cannot be had.
bool connect_pair(Pair &pair) {
    sockaddr_in address = {};
    socklen_t length = sizeof(address);
    Fd listener(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));

    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (!listener || bind(listener.get(), reinterpret_cast<sockaddr *>(&address), length) || listen(listener.get(), 1))
        return false;
    if (getsockname(listener.get(), reinterpret_cast<sockaddr *>(&address), &length))
        return false;
    pair.sender.reset(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    // Not to hang where something on the node eats the packets.
    timeval limit = {.tv_sec = 1, .tv_usec = 0};
    setsockopt(pair.sender.get(), SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit));
    setsockopt(listener.get(), SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
    if (!pair.sender || connect(pair.sender.get(), reinterpret_cast<sockaddr *>(&address), length))
        return false;
    pair.receiver.reset(accept4(listener.get(), nullptr, nullptr, SOCK_CLOEXEC));
    timeval patience = {.tv_sec = 0, .tv_usec = std::chrono::microseconds(kPatience).count()};
    return pair.receiver && !setsockopt(pair.receiver.get(), SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
}

bool put(int map, uint32_t key, int socket) {
    uint64_t value = static_cast<uint64_t>(socket);

    return bpf_map_update_elem(map, &key, &value, BPF_ANY) == 0;
}

bool send_bytes(const Pair &pair, size_t count, int flags = 0) {
    std::vector<char> bytes(count, 'x');

    return send(pair.sender.get(), bytes.data(), count, flags | MSG_NOSIGNAL) == static_cast<ssize_t>(count);
}

ssize_t receive(const Pair &pair, int flags = 0, size_t limit = 2 * kBytes) {
    std::vector<char> bytes(limit);

    return recv(pair.receiver.get(), bytes.data(), bytes.size(), flags);
}

bool splices(Pair &pair) {
    return send_bytes(pair, kBytes) && receive(pair) == kBytes;
}

// How much waits has to be seen: a reader that does not read is left to TCP by it.
bool shows_memory(Pair &pair) {
    uint32_t memory[SK_MEMINFO_VARS] = {};
    socklen_t length = sizeof(memory);
    bool shown = send_bytes(pair, kBytes) &&
                 !getsockopt(pair.receiver.get(), SOL_SOCKET, SO_MEMINFO, memory, &length) &&
                 memory[SK_MEMINFO_RMEM_ALLOC] >= kBytes;

    return receive(pair) == kBytes && shown;
}

bool counts_waiting(Pair &pair) {
    int waiting = 0;
    bool counted = send_bytes(pair, kBytes) && !ioctl(pair.receiver.get(), FIONREAD, &waiting) && waiting == kBytes;

    return receive(pair) == kBytes && counted;
}

bool peeks(Pair &pair) {
    bool peeked = send_bytes(pair, kBytes) && receive(pair, MSG_PEEK) == kBytes;

    return receive(pair) == kBytes && peeked;
}

bool reads_by_splice(Pair &pair) {
    int ends[2];

    if (!send_bytes(pair, kBytes) || pipe2(ends, O_CLOEXEC))
        return false;
    Fd reading(ends[0]), writing(ends[1]);
    if (splice(pair.receiver.get(), nullptr, writing.get(), nullptr, 2 * kBytes, SPLICE_F_NONBLOCK) == kBytes)
        return true;
    receive(pair, MSG_DONTWAIT);
    return false;
}

// With less than it wants, the reader waits for its time limit.
bool waits_for_all(Pair &pair) {
    if (!send_bytes(pair, kBytes))
        return false;
    auto begun = std::chrono::steady_clock::now();
    bool got = receive(pair, MSG_WAITALL) == kBytes;

    return got && std::chrono::steady_clock::now() - begun >= kPatience / 2;
}

bool tells_urgent(Pair &pair) {
    pollfd wanted = {.fd = pair.receiver.get(), .events = POLLPRI, .revents = 0};
    bool told = send_bytes(pair, 1, MSG_OOB) && poll(&wanted, 1, kPatience.count()) == 1;

    receive(pair, MSG_DONTWAIT);
    receive(pair, MSG_DONTWAIT | MSG_OOB);
    return told;
}

// Whoever waits in recv(2) is to be told why it ends, not that there is nothing yet. Ends the connection.
bool wakes_blocked(Pair &pair) {
    timeval patience = {.tv_sec = 1, .tv_usec = 0};
    linger none = {.l_onoff = 1, .l_linger = 0};

    setsockopt(pair.receiver.get(), SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
    setsockopt(pair.sender.get(), SOL_SOCKET, SO_LINGER, &none, sizeof(none));
    std::thread resets([&pair] {
        std::this_thread::sleep_for(kPatience);
        pair.sender.reset();
    });
    bool told = receive(pair) < 0 && errno == ECONNRESET;
    resets.join();
    return told;
}

struct Trial {
    const char *name;
    bool (*passes)(Pair &pair);
};

// In an order in which a trial that fails leaves nothing behind for the next.
constexpr Trial kTrials[] = {
    {"redirect", splices},        {"memory", shows_memory},    {"peek", peeks},
    {"FIONREAD", counts_waiting}, {"splice", reads_by_splice}, {"MSG_WAITALL", waits_for_all},
    {"MSG_OOB", tells_urgent},    {"blocking", wakes_blocked},
};

// The names of the trials that failed.
Napi::Value splice_flaws(const Napi::CallbackInfo &info) {
    auto env = info.Env();
    int program = fd_argument(info, 0), map = fd_argument(info, 1);
    auto flaws = Napi::Array::New(env);
    uint32_t failed = 0;
    Pair pair;

    if (!connect_pair(pair))
        throw kernel_error(env, errno, "connect", "connecting two sockets over the loopback interface");
    if (bpf_prog_attach(program, map, BPF_SK_MSG_VERDICT, 0) || !put(map, 0, pair.receiver.get()) ||
        !put(map, 1, pair.sender.get()))
        throw kernel_error(env, errno, "bpf", "splicing two sockets");
    for (const Trial &trial : kTrials) {
        if (!trial.passes(pair))
            flaws.Set(failed++, trial.name);
    }
    return flaws;
}

// For every message that a socket of the map sends; the map holds the program.
void attach_sk_msg(const Napi::CallbackInfo &info) {
    if (bpf_prog_attach(fd_argument(info, 0), fd_argument(info, 1), BPF_SK_MSG_VERDICT, 0))
        throw kernel_error(info.Env(), errno, "bpf", text_argument(info, 2));
}

} // namespace

void define_splice(Napi::Env env, Napi::Object exports) {
    exports.Set("spliceFlaws", Napi::Function::New(env, splice_flaws));
    exports.Set("attachSkMsg", Napi::Function::New(env, attach_sk_msg));
}

} // namespace ns
