// What bpf(2) has and Debian's libbpf 1.1 lacks: queries by interface with link ids (include/uapi/linux/bpf.h, 6.6).
#pragma once

#include <cstdint>
#include <cstring>
#include <sys/syscall.h>
#include <unistd.h>

#include <linux/bpf.h>

namespace ns {

constexpr uint32_t kTcxIngress = 46;
constexpr uint32_t kTcxEgress = 47;

struct QueryAttr {
    uint32_t target_ifindex;
    uint32_t attach_type;
    uint32_t query_flags;
    uint32_t attach_flags;
    uint64_t prog_ids;
    uint32_t count;
    uint32_t reserved;
    uint64_t prog_attach_flags;
    uint64_t link_ids;
    uint64_t link_attach_flags;
    uint64_t revision;
};

inline long query_programs(QueryAttr *attr) {
    return syscall(SYS_bpf, BPF_PROG_QUERY, attr, sizeof(*attr));
}

} // namespace ns
