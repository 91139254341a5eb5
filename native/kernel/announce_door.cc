// A Unix socket of messages (SOCK_SEQPACKET) at which each who connects says one, with descriptors: unix(7),
// SCM_RIGHTS. Read by a thread of its own; who says nothing is let go, and keeps nobody waiting.
#include "announce_door.hh"

#include <algorithm>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/timerfd.h>
#include <sys/un.h>

#include "functions.hh"

namespace ns {

namespace {

constexpr int kBacklog = 128;
constexpr size_t kMostClients = 64;
constexpr size_t kMostWaiting = 64;
constexpr int kPauseMs = 100; // with no descriptor left the kernel would wake us again at once

bool watch(int epoll, int fd) {
    epoll_event event = {.events = EPOLLIN, .data = {.fd = fd}};
    return epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) == 0;
}

Napi::Value send_message(const Napi::CallbackInfo &info) {
    auto text = text_argument(info, 1);

    // Who has gone, or does not read, does without.
    bool sent = send(fd_argument(info, 0), text.data(), text.size(), MSG_DONTWAIT | MSG_NOSIGNAL) >= 0;
    return Napi::Boolean::New(info.Env(), sent);
}

} // namespace

Napi::Function AnnounceDoor::define(Napi::Env env) {
    return DefineClass(env, "AnnounceDoor", {InstanceMethod("close", &AnnounceDoor::close)});
}

AnnounceDoor::AnnounceDoor(const Napi::CallbackInfo &info)
    : Napi::ObjectWrap<AnnounceDoor>(info), socket_(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0)),
      epoll_(epoll_create1(EPOLL_CLOEXEC)), timer_(timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK)),
      patience_(info[2].As<Napi::Number>().Uint32Value()), longest_(info[3].As<Napi::Number>().Uint32Value()),
      most_descriptors_(info[4].As<Napi::Number>().Uint32Value()), reader_(info.Env()) {
    auto env = info.Env();
    std::string path = text_argument(info, 0);
    std::string doing = "listening at " + path;
    sockaddr_un address = {};

    if (!socket_ || !epoll_ || !timer_)
        throw kernel_error(env, errno, "socket", doing);
    if (path.size() >= sizeof(address.sun_path))
        throw kernel_error(env, ENAMETOOLONG, "bind", doing);
    address.sun_family = AF_UNIX;
    memcpy(address.sun_path, path.c_str(), path.size() + 1);
    if (bind(socket_.get(), reinterpret_cast<sockaddr *>(&address), sizeof(address)))
        throw kernel_error(env, errno, "bind", doing);
    if (chmod(path.c_str(), info[5].As<Napi::Number>().Uint32Value()))
        throw kernel_error(env, errno, "chmod", doing);
    if (listen(socket_.get(), kBacklog))
        throw kernel_error(env, errno, "listen", doing);
    if (!watch(epoll_.get(), socket_.get()) || !watch(epoll_.get(), timer_.get()))
        throw kernel_error(env, errno, "epoll_ctl", doing);
    delivery_ = std::make_shared<Delivery<Item>>(env, info[1].As<Napi::Function>(), "nodesentry announcements",
                                                 kMostWaiting, to_js);
    reader_.start(
        epoll_.get(), [this] { return receive(); }, [this] { stop(); });
}

AnnounceDoor::~AnnounceDoor() {
    stop();
}

// What nobody takes over is closed with the item.
Napi::Value AnnounceDoor::to_js(Napi::Env env, const Item &item) {
    auto result = Napi::Object::New(env);
    auto descriptors = Napi::Array::New(env, item->descriptors.size());

    result.Set("text", Napi::Buffer<char>::Copy(env, item->text.data(), item->text.size()));
    result.Set("tooLong", item->too_long);
    result.Set("tooMany", item->too_many);
    for (uint32_t i = 0; i < item->descriptors.size(); i++)
        descriptors.Set(i, item->descriptors[i].release());
    result.Set("descriptors", descriptors);
    result.Set("connection", item->connection.release());
    return result;
}

bool AnnounceDoor::receive() {
    epoll_event events[16];
    int ready = epoll_wait(epoll_.get(), events, 16, 0);

    for (int i = 0; i < ready; i++) {
        int fd = events[i].data.fd;
        if (fd == socket_.get())
            accept_all();
        else if (fd != timer_.get())
            take(fd);
    }
    expire();
    return true;
}

void AnnounceDoor::accept_all() {
    for (;;) {
        Fd fd(accept4(socket_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
        if (!fd) {
            if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM)
                poll(nullptr, 0, kPauseMs);
            if (errno != ECONNABORTED && errno != EINTR)
                return;
            continue;
        }
        // Who has something to say has mostly said it by now: the one that has been silent for longest makes room.
        if (clients_.size() >= kMostClients)
            clients_.erase(clients_.begin());
        if (watch(epoll_.get(), fd.get()))
            clients_.push_back({std::move(fd), Clock::now() + patience_});
    }
}

void AnnounceDoor::take(int fd) {
    auto client =
        std::find_if(clients_.begin(), clients_.end(), [fd](const Client &one) { return one.fd.get() == fd; });
    if (client == clients_.end())
        return; // made room, and its number may be another's: that one's turn comes
    auto item = std::make_shared<Announcement>();
    std::vector<char> control(CMSG_SPACE(sizeof(int) * most_descriptors_));
    item->text.resize(longest_);
    iovec part = {.iov_base = item->text.data(), .iov_len = item->text.size()};
    msghdr message = {};
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    message.msg_control = control.data();
    message.msg_controllen = control.size();

    ssize_t got = recvmsg(fd, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    if (got < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    for (auto *header = got < 0 ? nullptr : CMSG_FIRSTHDR(&message); header; header = CMSG_NXTHDR(&message, header)) {
        if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS)
            continue;
        size_t count = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        for (size_t i = 0; i < count; i++) {
            int received;
            memcpy(&received, CMSG_DATA(header) + i * sizeof(int), sizeof(int));
            item->descriptors.emplace_back(received);
        }
    }
    epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, fd, nullptr);
    item->connection = std::move(client->fd);
    clients_.erase(client);
    if (got <= 0)
        return;
    item->text.resize(got);
    item->too_long = (message.msg_flags & MSG_TRUNC) != 0;
    item->too_many = (message.msg_flags & MSG_CTRUNC) != 0;
    delivery_->push(std::move(item));
}

void AnnounceDoor::expire() {
    auto now = Clock::now();
    itimerspec timer = {};

    while (!clients_.empty() && clients_.front().until <= now)
        clients_.erase(clients_.begin());
    if (!clients_.empty()) {
        auto left = std::chrono::duration_cast<std::chrono::nanoseconds>(clients_.front().until - now).count();
        timer.it_value.tv_sec = left / 1000000000;
        timer.it_value.tv_nsec = std::max<long>(left % 1000000000, 1);
    }
    timerfd_settime(timer_.get(), 0, &timer, nullptr); // which also takes back that it has expired
}

void AnnounceDoor::stop() {
    reader_.stop();
    if (delivery_)
        delivery_->close();
    clients_.clear();
    timer_.reset();
    epoll_.reset();
    socket_.reset();
}

void AnnounceDoor::close(const Napi::CallbackInfo &) {
    stop();
}

void define_announcements(Napi::Env env, Napi::Object exports) {
    exports.Set("AnnounceDoor", AnnounceDoor::define(env));
    exports.Set("sendMessage", Napi::Function::New(env, send_message));
}

} // namespace ns
