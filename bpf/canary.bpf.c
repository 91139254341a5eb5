// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/* canary: never attached to anything. Run on live frames (BPF_F_TEST_XDP_LIVE_FRAMES, Linux 5.18) it hands each to the
 * stack as if it had just been received by an interface: the agent's way of sending a packet as a pod would. */
#include "sockets.h"

char LICENSE[] SEC("license") = "Dual MIT/GPL";

SEC("xdp")
int canary(struct xdp_md *ctx) {
    return XDP_PASS;
}
