// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/* splice_trial: what is sent by any socket of its map goes into the queue of the one at 0. With it the agent tries what
 * this kernel makes of sockets that are filled so (native/bpf/splice_trial.cc). */
#include <linux/bpf.h>
#include <linux/types.h>
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "Dual MIT/GPL";

struct {
    __uint(type, BPF_MAP_TYPE_SOCKHASH);
    __uint(max_entries, 2);
    __type(key, __u32);
    __type(value, __u64);
} trial_sockets SEC(".maps");

SEC("sk_msg")
int splice_trial(struct sk_msg_md *message) {
    __u32 receiver = 0;

    bpf_msg_redirect_hash(message, &trial_sockets, &receiver, BPF_F_INGRESS);
    return SK_PASS;
}
