#include "commands.hh"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <unistd.h>

#include "absence.hh"
#include "agent.hh"
#include "event_log.hh"
#include "io.hh"
#include "json.hh"
#include "outcome.hh"

namespace cni {

namespace {

// A deletion must never wait for the agent, and kubelet's questions about the node's state come every few seconds.
constexpr long kDelMs = 500;
constexpr long kStatusMs = 1000;
constexpr long kGcMs = 2000;

std::string request_text(const Call &call, int left_ms) {
    const auto &[parameters, configuration, started] = call;
    std::string text = "{\"version\":1,\"command\":" + json_string(parameters.command_name);
    auto field = [&](const char *name, const std::string &value) {
        if (!value.empty())
            text += "," + json_string(name) + ":" + json_string(value);
    };
    auto raw = [&](const char *name, std::string_view value) {
        if (!value.empty())
            text.append(",").append(json_string(name)).append(":").append(value);
    };
    Command command = parameters.command;
    if (command != Command::kStatus && command != Command::kGc) {
        field("containerId", parameters.container_id);
        field("netns", parameters.netns);
        field("ifname", parameters.ifname);
        field("podUid", parameters.pod_uid);
        field("podNamespace", parameters.pod_namespace);
        field("podName", parameters.pod_name);
        raw("annotations", configuration.annotations);
    }
    if (command == Command::kAdd || command == Command::kCheck)
        raw("prevResult", configuration.prev_result);
    if (command == Command::kGc) {
        std::string list;
        for (const auto &[container_id, ifname] : configuration.attachments)
            list += std::string(list.empty() ? "" : ",") + "{\"containerId\":" + json_string(container_id) +
                    ",\"ifname\":" + json_string(ifname) + "}";
        text += ",\"attachments\":[" + list + "]";
    }
    return text + ",\"timeoutMs\":" + std::to_string(left_ms) + "}";
}

Request request_of(const Call &call) {
    return [&call](int left_ms) { return request_text(call, left_ms); };
}

void log(const Call &call, Level level, const std::string &message) {
    log_event(call.configuration.log_file, level, call.parameters, message);
}

std::string took(const Call &call) {
    return " after " + std::to_string(now_ms() - call.started_ms) + " ms";
}

// What stands between us and success; empty: nothing.
struct Obstacle {
    int code;
    std::string message;
    std::string details;
};

Obstacle obstacle_in(const Reply &reply, const Call &call, long limit_ms) {
    const std::string agent = "the nodesentry agent at " + call.configuration.socket;
    const std::string within = " within " + std::to_string(limit_ms) + " ms";

    if (!reply.answer)
        return {kTryAgainLater, agent + " did not answer" + within + ": " + reply.failure, ""};
    const Answer &answer = *reply.answer;
    if (answer.ok)
        return {};
    const std::string said = answer.message.empty() ? "it gave no reason" : answer.message;
    if (answer.retry)
        return {kTryAgainLater, agent + " was not ready" + within + ": " + said, answer.details};
    return {answer.code == 0 ? kInternal : answer.code, agent + " refused: " + said, answer.details};
}

constexpr const char *kClosed = " (failure: closed, so the pod is not started without its datapath)";
constexpr const char *kOpen = " (failure: open, so this is let pass)";

// Under `open` an obstacle is logged and let pass, under `closed` it is thrown.
void settle(const Call &call, const Reply &reply, long limit_ms, const char *why_closed) {
    Obstacle obstacle = obstacle_in(reply, call, limit_ms);

    if (obstacle.code == 0) {
        log(call, Level::kInfo, (reply.answer->state.empty() ? "ok" : reply.answer->state) + took(call));
        return;
    }
    if (!call.configuration.open)
        throw Error(obstacle.code, obstacle.message + why_closed, obstacle.details);
    log(call, Level::kWarn, obstacle.message + kOpen + (obstacle.details.empty() ? "" : ": " + obstacle.details));
}

Judgement while_away(const Call &call) {
    if (agent_lives(call.configuration.socket))
        return {Absence::kHold, "an agent is starting"};
    return judge(call.configuration, call.parameters);
}

// Asks until there is an answer, for a pod that may have to go without one.
void ask_for_pod(const Call &call, const char *why_closed) {
    const auto &[parameters, configuration, started_ms] = call;
    auto deadline = Deadline::in_ms(configuration.timeout_ms, started_ms);
    auto is_vain = [&] { return while_away(call).absence == Absence::kAdmit; };
    Reply reply = ask_until(configuration.socket, request_of(call), deadline, is_vain);

    if (reply.nobody) {
        Judgement judgement = while_away(call);
        if (judgement.absence != Absence::kHold)
            return log(call, Level::kWarn,
                       "no nodesentry agent runs at " + configuration.socket + " (" + reply.failure +
                           "), so the pod is let pass as one that is not enrolled: " + judgement.why + took(call));
    }
    settle(call, reply, configuration.timeout_ms, why_closed);
}

void need_prev_result(const Call &call) {
    if (call.configuration.prev_result.empty())
        throw Error(kInvalidConfiguration, "prevResult is missing",
                    "nodesentry-cni is a chained plugin: it needs the result of another one before it in the list");
}

} // namespace

void add(const Call &call) {
    need_prev_result(call);
    check_netns(call.parameters.netns);
    ask_for_pod(call, kClosed);
    if (!write_all(STDOUT_FILENO, std::string(call.configuration.prev_result) + "\n"))
        throw Error(kIoFailure, std::string("writing the result: ") + strerror(errno));
}

void check(const Call &call) {
    need_prev_result(call);
    check_netns(call.parameters.netns);
    // A failed CHECK is taken for final, so an agent that is just restarting is waited for.
    ask_for_pod(call, " (failure: closed)");
}

void del(const Call &call) {
    Reply reply = ask_once(call.configuration.socket, request_of(call), Deadline::in_ms(kDelMs));
    Obstacle obstacle = obstacle_in(reply, call, kDelMs);

    if (obstacle.code == 0)
        log(call, Level::kInfo, (reply.answer->state.empty() ? "ok" : reply.answer->state) + took(call));
    else
        log(call, Level::kWarn, obstacle.message + " (a deletion goes on without it)");
}

void status(const Call &call) {
    long limit_ms = std::min(call.configuration.timeout_ms, kStatusMs);
    Reply reply = ask_once(call.configuration.socket, request_of(call), Deadline::in_ms(limit_ms));

    if (call.configuration.open || (reply.answer && reply.answer->ok))
        return settle(call, reply, limit_ms, "");
    // A network that is not ready starts no pod at all, and the rule knows some that may.
    const std::string &socket = call.configuration.socket;
    if (reply.nobody && rule_is_left(call.configuration) && !agent_lives(socket))
        return log(call, Level::kWarn,
                   "no nodesentry agent runs at " + socket + ": pods that are enrolled do not start until one does");
    Obstacle obstacle = obstacle_in(reply, call, limit_ms);
    bool own_code = obstacle.code == kNotAvailable || obstacle.code == kLimitedConnectivity;
    throw Error(own_code ? obstacle.code : kNotAvailable, obstacle.message + " (failure: closed)", obstacle.details);
}

void gc(const Call &call) {
    if (!call.configuration.has_attachments) {
        // Read as "nothing is valid" this would take every pod's state away.
        log(call, Level::kWarn, "no cni.dev/valid-attachments given: nothing collected");
        return;
    }
    long limit_ms = std::min(call.configuration.timeout_ms, kGcMs);
    Reply reply = ask_once(call.configuration.socket, request_of(call), Deadline::in_ms(limit_ms));
    Obstacle obstacle = obstacle_in(reply, call, limit_ms);
    if (obstacle.code != 0)
        throw Error(obstacle.code, obstacle.message, obstacle.details);
    log(call, Level::kInfo, "collected" + took(call));
}

} // namespace cni
