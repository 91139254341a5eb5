#include "io.hh"

#include <cerrno>
#include <poll.h>
#include <sys/socket.h>

namespace cni {

namespace {

Io wait_for(int fd, short events, const Deadline &deadline) {
    for (;;) {
        pollfd waiting = {.fd = fd, .events = events, .revents = 0};
        int ready = poll(&waiting, 1, deadline.left_ms());
        if (ready > 0)
            return Io::kDone;
        if (ready == 0)
            return Io::kTimedOut;
        if (errno != EINTR)
            return Io::kFailed;
    }
}

bool passing(int error) {
    return error == EINTR || error == EAGAIN;
}

} // namespace

Io read_all(int fd, const Deadline &deadline, std::string &into) {
    char buffer[64 * 1024];

    for (;;) {
        Io ready = wait_for(fd, POLLIN, deadline);
        if (ready != Io::kDone)
            return ready;
        ssize_t count = read(fd, buffer, sizeof(buffer));
        if (count == 0)
            return Io::kDone;
        if (count < 0) {
            if (passing(errno))
                continue;
            return Io::kFailed;
        }
        if (into.size() + static_cast<size_t>(count) > kMaxDocument)
            return Io::kTooLong;
        into.append(buffer, static_cast<size_t>(count));
    }
}

Io send_all(int socket, std::string_view bytes, const Deadline &deadline) {
    while (!bytes.empty()) {
        Io ready = wait_for(socket, POLLOUT, deadline);
        if (ready != Io::kDone)
            return ready;
        ssize_t count = send(socket, bytes.data(), bytes.size(), MSG_NOSIGNAL);
        if (count >= 0)
            bytes.remove_prefix(static_cast<size_t>(count));
        else if (!passing(errno))
            return Io::kFailed;
    }
    return Io::kDone;
}

bool write_all(int fd, std::string_view bytes) {
    while (!bytes.empty()) {
        ssize_t count = write(fd, bytes.data(), bytes.size());
        if (count >= 0) {
            bytes.remove_prefix(static_cast<size_t>(count));
        } else if (errno == EAGAIN) {
            pollfd waiting = {.fd = fd, .events = POLLOUT, .revents = 0};
            poll(&waiting, 1, -1);
        } else if (errno != EINTR) {
            return false;
        }
    }
    return true;
}

} // namespace cni
