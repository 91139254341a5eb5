#include "agent.hh"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <sys/socket.h>
#include <sys/un.h>

#include "io.hh"
#include "json.hh"

namespace cni {

namespace {

constexpr int kFirstPauseMs = 20;
constexpr int kLongestPauseMs = 250;

Reply failed(const std::string &what) {
    return {std::nullopt, what};
}

Reply unconnected(int error) {
    return {std::nullopt, std::string("connect: ") + strerror(error), error == ENOENT || error == ECONNREFUSED};
}

std::string explain(Io outcome, const char *doing) {
    switch (outcome) {
    case Io::kTimedOut:
        return std::string(doing) + ": no answer in time";
    case Io::kTooLong:
        return std::string(doing) + ": more than 1 MiB";
    default:
        return std::string(doing) + ": " + strerror(errno);
    }
}

std::string text_of(const Json &object, const char *key) {
    return object.contains(key) && object[key].is_string() ? object[key].get<std::string>() : "";
}

Reply read_answer(const std::string &text) {
    Json parsed;

    if (text.empty())
        return failed("the agent closed the connection without an answer");
    try {
        parsed = parse_shallow(text);
    } catch (const Json::exception &) {
        // Falls under what an answer should not be.
    }
    if (!parsed.is_object() || !parsed.contains("ok") || !parsed["ok"].is_boolean())
        return failed("the agent's answer is not what it should be: " + text.substr(0, 200));
    Answer answer;
    answer.ok = parsed["ok"].get<bool>();
    answer.state = text_of(parsed, "state");
    answer.message = text_of(parsed, "msg");
    answer.details = text_of(parsed, "details");
    answer.retry = !answer.ok && parsed.contains("retry") && parsed["retry"] == true;
    if (parsed.contains("code") && parsed["code"].is_number_integer() && parsed["code"] > 0 &&
        parsed["code"] < 0x7fffffff)
        answer.code = parsed["code"].get<int>();
    return {answer, ""};
}

void pause(int ms) {
    timespec left = {.tv_sec = ms / 1000, .tv_nsec = (ms % 1000) * 1000000L};
    while (nanosleep(&left, &left) != 0 && errno == EINTR)
        ;
}

} // namespace

Reply ask_once(const std::string &socket, const Request &request, const Deadline &deadline) {
    Fd fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
    if (!fd)
        return failed(std::string("socket: ") + strerror(errno));
    sockaddr_un address = {};
    address.sun_family = AF_UNIX;
    strncpy(address.sun_path, socket.c_str(), sizeof(address.sun_path) - 1);
    // EAGAIN: the agent's backlog is full.
    if (connect(fd.get(), reinterpret_cast<sockaddr *>(&address), sizeof(address)))
        return unconnected(errno);
    std::string text = request(deadline.left_ms());
    if (text.size() > kMaxDocument)
        return failed("the request is longer than 1 MiB");
    Io sent = send_all(fd.get(), text, deadline);
    // An agent that has its answer ready may stop reading: EPIPE does not keep us from looking for it.
    if (sent != Io::kDone && !(sent == Io::kFailed && errno == EPIPE))
        return failed(explain(sent, "sending the request"));
    shutdown(fd.get(), SHUT_WR);
    std::string received;
    Io got = read_all(fd.get(), deadline, received);
    if (got != Io::kDone)
        return failed(explain(got, "reading the answer"));
    return read_answer(received);
}

Reply ask_until(const std::string &socket, const Request &request, const Deadline &deadline,
                const std::function<bool()> &is_vain) {
    std::optional<Reply> before;

    for (int wait = kFirstPauseMs;; wait = std::min(2 * wait, kLongestPauseMs)) {
        Reply reply = ask_once(socket, request, deadline);
        if ((reply.answer && !reply.answer->retry) || (reply.nobody && is_vain()))
            return reply;
        if (deadline.passed()) // an attempt that was cut short says less than the one before it
            return !reply.answer && before ? *before : reply;
        pause(std::min(wait, deadline.left_ms()));
        if (deadline.passed())
            return reply;
        before = reply;
    }
}

} // namespace cni
