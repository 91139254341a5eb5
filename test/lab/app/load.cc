// The load of `make bench`: a server, and clients that measure it. Static, for it runs inside gVisor and microVMs too.
//
// A request is kRequest bytes whose first one says what is wanted; the answer is kAnswer bytes, after which the server
// ends the connection where that was asked, or a stream without an end. So the client's end of a connection never waits
// in TIME_WAIT, and ports do not run out. One thread on each side, and epoll. Clients print one line of JSON.
#include <algorithm>
#include <arpa/inet.h>
#include <cerrno>
#include <cinttypes>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <memory>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <string>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>
#include <vector>

namespace {

constexpr size_t kRequest = 128;
constexpr size_t kAnswer = 1024;
constexpr size_t kChunk = 256 << 10;
constexpr int64_t kSecond = 1000000000;
// What is done before the measured time begins: caches, windows and pools are warm then.
constexpr int64_t kWarmUp = kSecond / 5;
// For answers that are still on their way when the time is over.
constexpr int64_t kPatience = 5 * kSecond;

enum Wanted : char { kStay = 'K', kClose = 'C', kStream = 'B' };

char chunk[kChunk];

int64_t now() {
    timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * kSecond + t.tv_nsec;
}

[[noreturn]] void die(const char *what) {
    fprintf(stderr, "%s: %s\n", what, strerror(errno));
    exit(1);
}

// As many descriptors as this process may have.
void raise_limit() {
    rlimit limit;

    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
}

void set_option(int fd, int level, int option, int value) {
    setsockopt(fd, level, option, &value, sizeof(value));
}

class Poll {
  public:
    Poll() : fd_(epoll_create1(EPOLL_CLOEXEC)) {
        if (fd_ < 0)
            die("epoll_create1");
    }

    void add(int fd, uint32_t events, uint64_t tag) {
        epoll_event event = {events, {.u64 = tag}};
        if (epoll_ctl(fd_, EPOLL_CTL_ADD, fd, &event))
            die("epoll_ctl");
    }

    void change(int fd, uint32_t events, uint64_t tag) {
        epoll_event event = {events, {.u64 = tag}};
        if (epoll_ctl(fd_, EPOLL_CTL_MOD, fd, &event))
            die("epoll_ctl");
    }

    // Calls `each(tag, events)`.
    template <typename Each> void wait(int timeout_ms, Each each) {
        epoll_event events[256];
        int count = epoll_wait(fd_, events, 256, timeout_ms);

        for (int i = 0; i < count; i++)
            each(events[i].data.u64, events[i].events);
    }

  private:
    int fd_;
};

// --- server ---------------------------------------------------------------------------------------------------------

class Server {
  public:
    explicit Server(const std::vector<int> &ports) {
        for (int port : ports)
            listen_at(port);
        listeners_ = last_ + 1;
    }

    [[noreturn]] void run() {
        for (;;)
            poll_.wait(-1, [this](uint64_t tag, uint32_t events) {
                int fd = static_cast<int>(tag);
                if (fd < listeners_)
                    accept_all(fd);
                else if (events & EPOLLOUT)
                    stream(fd);
                else
                    answer(fd);
            });
    }

  private:
    void listen_at(int port) {
        int fd = socket(AF_INET6, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        sockaddr_in6 any = {};

        any.sin6_family = AF_INET6;
        any.sin6_port = htons(port);
        set_option(fd, SOL_SOCKET, SO_REUSEADDR, 1);
        if (fd < 0 || bind(fd, reinterpret_cast<sockaddr *>(&any), sizeof(any)) || listen(fd, 4096))
            die("listen");
        poll_.add(fd, EPOLLIN, fd);
        last_ = std::max(last_, fd);
    }

    void accept_all(int listener) {
        for (int fd; (fd = accept4(listener, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK)) >= 0;) {
            set_option(fd, IPPROTO_TCP, TCP_NODELAY, 1);
            if (static_cast<size_t>(fd) >= had_.size())
                had_.resize(fd + 1024);
            had_[fd] = 0;
            poll_.add(fd, EPOLLIN, fd);
        }
    }

    void answer(int fd) {
        char request[64 * kRequest];
        ssize_t got = recv(fd, request, sizeof(request), 0);

        if (got <= 0) {
            if (got == 0 || errno != EAGAIN)
                close(fd);
            return;
        }
        // Of a request in pieces, the last byte says the same as the first: clients fill it with one letter.
        had_[fd] += got;
        for (; had_[fd] >= kRequest; had_[fd] -= kRequest) {
            if (request[got - 1] == kStream) {
                poll_.change(fd, EPOLLOUT, fd);
                return;
            }
            if (send(fd, chunk, kAnswer, MSG_NOSIGNAL) != kAnswer || request[got - 1] == kClose) {
                close(fd);
                return;
            }
        }
    }

    void stream(int fd) {
        if (send(fd, chunk, kChunk, MSG_NOSIGNAL) < 0 && errno != EAGAIN)
            close(fd);
    }

    Poll poll_;
    // By descriptor: bytes of a request that is not whole yet.
    std::vector<size_t> had_;
    int last_ = 0, listeners_ = 0;
};

// --- clients --------------------------------------------------------------------------------------------------------

enum class Kind { kConnects, kRequests, kPaced, kBulk };

struct Plan {
    Kind kind;
    const char *ip;
    std::vector<int> ports;
    size_t clients;
    int64_t measured;
    // Requests a second, of all clients together.
    double rate;
};

// What was done, and how long each took; only what ends within the measured time is in it, but for `total`.
class Account {
  public:
    void begin(int64_t measured) {
        started_ = now();
        from_ = started_ + kWarmUp;
        until_ = from_ + measured;
    }

    int64_t started() const {
        return started_;
    }
    int64_t until() const {
        return until_;
    }

    // A request whose time began at `since`, and which is over.
    void done(int64_t since) {
        int64_t at = now();

        total_++;
        if (at >= from_ && at < until_)
            took_.push_back(at - since);
    }

    // A request that was to begin at `since`: what matters is when it was due.
    void done_of_due(int64_t since) {
        total_++;
        if (since >= from_ && since < until_)
            took_.push_back(now() - since);
    }

    void received(size_t bytes) {
        int64_t at = now();

        total_bytes_ += bytes;
        if (at >= from_ && at < until_)
            bytes_ += bytes;
    }

    void failed(int error) {
        failures_++;
        error_ = error == 0 ? "ended early" : strerrorname_np(error);
    }

    int print() {
        std::sort(took_.begin(), took_.end());
        printf("{\"seconds\":%.6f,\"done\":%zu,\"total\":%" PRIu64 ",\"bytes\":%" PRIu64 ",\"totalBytes\":%" PRIu64
               ",\"failures\":%" PRIu64 ",\"error\":\"%s\"",
               (until_ - from_) / 1e9, took_.size(), total_, bytes_, total_bytes_, failures_, error_.c_str());
        if (!took_.empty())
            printf(",\"p50Us\":%.1f,\"p99Us\":%.1f,\"p999Us\":%.1f,\"maxUs\":%.1f", quantile(0.5), quantile(0.99),
                   quantile(0.999), took_.back() / 1e3);
        puts("}");
        return failures_ > 0;
    }

  private:
    // The smallest time that this share of all did not exceed.
    double quantile(double q) const {
        size_t rank = static_cast<size_t>(q * took_.size());
        return took_[std::min(rank, took_.size() - 1)] / 1e3;
    }

    int64_t started_ = 0, from_ = 0, until_ = 0;
    std::vector<int64_t> took_;
    uint64_t total_ = 0, bytes_ = 0, total_bytes_ = 0, failures_ = 0;
    std::string error_;
};

struct Client {
    int fd = -1;
    size_t got = 0;
    // When its request began, or was due.
    int64_t since = 0;
    // Of paced ones: whether one is on its way.
    bool waits = false;
};

class Clients {
  public:
    explicit Clients(const Plan &plan) : plan_(plan), clients_(plan.clients) {
        memset(request_, plan.kind == Kind::kConnects ? kClose : plan.kind == Kind::kBulk ? kStream : kStay, kRequest);
    }

    int run() {
        account_.begin(plan_.measured);
        for (size_t i = 0; i < clients_.size(); i++)
            dial(i);
        if (plan_.kind == Kind::kPaced)
            return run_paced();
        while (now() < account_.until())
            poll_.wait(10, [this](uint64_t tag, uint32_t events) { react(tag, events); });
        return account_.print();
    }

  private:
    void dial(size_t index) {
        Client &client = clients_[index];
        sockaddr_in to = {};

        to.sin_family = AF_INET;
        to.sin_port = htons(plan_.ports[next_port_++ % plan_.ports.size()]);
        inet_pton(AF_INET, plan_.ip, &to.sin_addr);
        client = {};
        client.since = now();
        client.fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        if (client.fd < 0)
            die("socket");
        set_option(client.fd, IPPROTO_TCP, TCP_NODELAY, 1);
        if (connect(client.fd, reinterpret_cast<sockaddr *>(&to), sizeof(to)) && errno != EINPROGRESS) {
            again(index, errno);
            return;
        }
        poll_.add(client.fd, EPOLLOUT, index);
    }

    // A failure is counted, and ends the run before it becomes a busy loop.
    void again(size_t index, int error) {
        account_.failed(error);
        close(clients_[index].fd);
        if (++failed_ > 1000)
            exit(account_.print());
        dial(index);
    }

    bool ask(size_t index) {
        Client &client = clients_[index];

        client.got = 0;
        if (send(client.fd, request_, kRequest, MSG_NOSIGNAL) == kRequest)
            return true;
        again(index, errno);
        return false;
    }

    void react(size_t index, uint32_t events) {
        Client &client = clients_[index];

        if (events & EPOLLOUT) {
            connected(index);
            return;
        }
        if (!(events & (EPOLLIN | EPOLLHUP | EPOLLERR)))
            return;
        ssize_t got = recv(client.fd, chunk, sizeof(chunk), 0);
        if (got < 0 && errno == EAGAIN)
            return;
        if (got > 0) {
            client.got += got;
            received(index, got);
            return;
        }
        if (got == 0 && plan_.kind == Kind::kConnects && client.got == kAnswer) {
            account_.done(client.since);
            close(client.fd);
            dial(index);
            return;
        }
        again(index, got < 0 ? errno : 0);
    }

    void connected(size_t index) {
        Client &client = clients_[index];
        int error = 0;
        socklen_t length = sizeof(error);

        getsockopt(client.fd, SOL_SOCKET, SO_ERROR, &error, &length);
        if (error) {
            again(index, error);
            return;
        }
        poll_.change(client.fd, EPOLLIN, index);
        if (plan_.kind == Kind::kPaced) {
            idle_.push_back(index);
            return;
        }
        if (plan_.kind != Kind::kConnects)
            client.since = now();
        ask(index);
    }

    void received(size_t index, size_t bytes) {
        Client &client = clients_[index];

        if (plan_.kind == Kind::kBulk) {
            account_.received(bytes);
        } else if (client.got >= kAnswer && plan_.kind == Kind::kRequests) {
            account_.done(client.since);
            client.since = now();
            ask(index);
        } else if (client.got >= kAnswer && plan_.kind == Kind::kPaced) {
            account_.done_of_due(client.since);
            client.waits = false;
            idle_.push_back(index);
            waiting_--;
        }
    }

    // Requests come due at a fixed rate, whatever became of those before: one that finds no connection free waits, and
    // its time has begun all the same. So a pause is seen by all that it held up (no coordinated omission).
    int run_paced() {
        int timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
        const uint64_t timer_tag = clients_.size();
        int64_t sent = 0;

        prctl(PR_SET_TIMERSLACK, 1);
        poll_.add(timer, EPOLLIN, timer_tag);
        for (;;) {
            int64_t due = account_.started() + static_cast<int64_t>(sent * (1e9 / plan_.rate));
            int64_t at = now();
            if (due >= account_.until() && waiting_ == 0)
                break;
            if (at >= account_.until() + kPatience) {
                account_.failed(ETIMEDOUT);
                break;
            }
            if (due < account_.until() && due <= at && !idle_.empty()) {
                size_t index = idle_.front();
                idle_.pop_front();
                clients_[index].since = due;
                clients_[index].waits = ask(index);
                waiting_ += clients_[index].waits;
                sent++;
                continue;
            }
            if (due > at) {
                itimerspec when = {};
                when.it_value = {due / kSecond, due % kSecond};
                timerfd_settime(timer, TFD_TIMER_ABSTIME, &when, nullptr);
            }
            poll_.wait(100, [&](uint64_t tag, uint32_t events) {
                uint64_t times;
                if (tag != timer_tag)
                    react(tag, events);
                else if (read(timer, &times, sizeof(times)) < 0)
                    return;
            });
        }
        return account_.print();
    }

    const Plan &plan_;
    std::vector<Client> clients_;
    char request_[kRequest];
    Poll poll_;
    Account account_;
    // In turns, the one that has rested longest first.
    std::deque<size_t> idle_;
    size_t next_port_ = 0, failed_ = 0, waiting_ = 0;
};

// Opens connections, a request over each so that a proxy has dialled on, and keeps them until it is ended.
int hold(const Plan &plan) {
    size_t open = 0;

    for (; open < plan.clients; open++) {
        sockaddr_in to = {};
        char request[kRequest];
        int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

        to.sin_family = AF_INET;
        to.sin_port = htons(plan.ports[open % plan.ports.size()]);
        inet_pton(AF_INET, plan.ip, &to.sin_addr);
        memset(request, kStay, sizeof(request));
        if (fd < 0 || connect(fd, reinterpret_cast<sockaddr *>(&to), sizeof(to)))
            die("connect");
        if (send(fd, request, kRequest, MSG_NOSIGNAL) != kRequest || recv(fd, chunk, kAnswer, MSG_WAITALL) != kAnswer)
            die("a request");
    }
    printf("{\"held\":%zu}\n", open);
    fflush(stdout);
    for (;;)
        pause();
}

std::vector<int> parse_ports(char *text) {
    std::vector<int> ports;

    for (char *port = strtok(text, ","); port; port = strtok(nullptr, ","))
        ports.push_back(atoi(port));
    return ports;
}

int usage() {
    fputs("usage: load serve PORT,…\n"
          "       load connects|requests|bulk IP PORT,… CLIENTS SECONDS\n"
          "       load paced IP PORT,… CLIENTS SECONDS REQUESTS_PER_SECOND\n"
          "       load hold IP PORT,… CONNECTIONS\n",
          stderr);
    return 2;
}

} // namespace

int main(int count, char **words) {
    const std::string command = count > 1 ? words[1] : "";

    signal(SIGPIPE, SIG_IGN);
    raise_limit();
    if (command == "serve" && count == 3) {
        auto server = std::make_unique<Server>(parse_ports(words[2]));
        puts("{\"serving\":true}");
        fflush(stdout);
        server->run();
    }
    if (count < 5)
        return usage();
    Plan plan = {Kind::kConnects, words[2], parse_ports(words[3]), static_cast<size_t>(atol(words[4])), 0, 0};
    if (plan.ports.empty() || plan.clients == 0)
        return usage();
    if (command == "hold" && count == 5)
        return hold(plan);
    if (count < 6)
        return usage();
    plan.measured = static_cast<int64_t>(atof(words[5]) * kSecond);
    if (command == "connects" && count == 6)
        plan.kind = Kind::kConnects;
    else if (command == "requests" && count == 6)
        plan.kind = Kind::kRequests;
    else if (command == "bulk" && count == 6)
        plan.kind = Kind::kBulk;
    else if (command == "paced" && count == 7 && atof(words[6]) > 0) {
        plan.kind = Kind::kPaced;
        plan.rate = atof(words[6]);
    } else
        return usage();
    return std::make_unique<Clients>(plan)->run();
}
