// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
/* pod_egress: tc ingress of a pod's host-side interface, which is everything that the pod sends. What its mark relies
 * on further along stands in docs/datapath.md, "Who relies on whom". */
#include <linux/udp.h>

#include "sockets.h"

char LICENSE[] SEC("license") = "Dual MIT/GPL";

#define TCP_CHECKSUM_OFFSET 16
#define TCP_FLAGS_OFFSET 12
#define PORT_DHCP_SERVER 67
#define PORT_DHCPV6_SERVER 547
#define ICMPV6_MLD_REPORT 131
#define ICMPV6_MLD_DONE 132
#define ICMPV6_ROUTER_SOLICITATION 133
#define ICMPV6_NEIGHBOUR_SOLICITATION 135
#define ICMPV6_NEIGHBOUR_ADVERTISEMENT 136
#define ICMPV6_MLD2_REPORT 143
#define TURNS_PASSED_OVER 3
#define REFRESH_JIFFIES 1024 /* one to ten seconds */

static __always_inline bool is_unspecified_or_link_local(const struct packet *packet) {
    const __u8 *bytes = packet->key.src.bytes;

    if (packet->family == AF_INET6 && bytes[0] == 0xfe && (bytes[1] & 0xc0) == 0x80)
        return true;
    for (int i = 0; i < 16; i++) {
        /* 0.0.0.0 in its mapped form, and :: */
        if (bytes[i] && !(packet->family == AF_INET && (i == 10 || i == 11)))
            return false;
    }
    return true;
}

/* Identity rests on this: what an interface sends must bear an address of its pod. DHCP, duplicate address
 * detection and neighbour discovery come from addresses that nobody is known by; TCP never does. */
static __always_inline bool source_belongs(__u32 ifindex, const struct packet *packet) {
    struct source_key key = {.ifindex = ifindex, .address = packet->key.src};

    if (bpf_map_lookup_elem(&sources, &key))
        return true;
    return packet->key.protocol != IPPROTO_TCP && is_unspecified_or_link_local(packet);
}

static __always_inline bool is_followed(void) {
    __u32 row = 0;
    struct settings *settings_row = bpf_map_lookup_elem(&settings, &row);

    return settings_row && settings_row->followed;
}

static __always_inline void report(const struct packet *packet, const struct endpoint *endpoint, __u32 ifindex,
                                   enum verdict verdict) {
    struct event *event;

    if (!is_followed())
        return;
    event = bpf_ringbuf_reserve(&events, sizeof(*event), 0);
    if (!event) {
        count(endpoint->id, VERDICT_EVENT_LOST);
        return;
    }
    __builtin_memset(event, 0, sizeof(*event));
    event->time_ns = bpf_ktime_get_ns();
    event->key = packet->key;
    event->endpoint = endpoint->id;
    event->generation = endpoint->generation;
    event->ifindex = ifindex;
    event->instance = endpoint->instance;
    event->direction = DIRECTION_EGRESS;
    event->verdict = verdict;
    /* The reader looks by itself every few milliseconds: it is woken only where that may be too late. */
    bpf_ringbuf_submit(event, bpf_ringbuf_query(&events, BPF_RB_AVAIL_DATA) < EVENT_BYTES / 4 ? BPF_RB_NO_WAKEUP
                                                                                              : BPF_RB_FORCE_WAKEUP);
}

static __always_inline int drop(const struct endpoint *endpoint, enum verdict verdict) {
    count(endpoint->id, verdict);
    return TC_ACT_SHOT;
}

static __always_inline int pass(const struct endpoint *endpoint, enum verdict verdict) {
    count(endpoint->id, verdict);
    return TC_ACT_UNSPEC; /* whoever comes after us at this hook decides */
}

/* Turns the packet into the reset that answers it and sends it back (RFC 9293, 3.10.7.1). Addresses and ports
 * change places, which no checksum notices; options and data stay where they are and are ignored. */
static __always_inline int reset(struct __sk_buff *skb, const struct packet *packet, const struct endpoint *endpoint,
                                 enum verdict verdict) {
    struct {
        __u8 to[ETH_ALEN];
        __u8 from[ETH_ALEN];
    } mac, turned;
    struct tcphdr tcp;
    __u32 checksum = packet->l4 + TCP_CHECKSUM_OFFSET;
    __u32 ip_header = packet->l4 - packet->l3;
    __u32 length;
    __be32 old_sequence, old_acknowledged, sequence, acknowledged;
    __be16 old_flags, flags;
    __u8 *word;

    count(endpoint->id, verdict);
    if (packet->tcp_flags & TCP_RST)
        return TC_ACT_SHOT;
    if (bpf_skb_load_bytes(skb, 0, &mac, sizeof(mac)) || bpf_skb_load_bytes(skb, packet->l4, &tcp, sizeof(tcp)))
        return TC_ACT_SHOT;

    if (packet->family == AF_INET) {
        struct iphdr ip;

        if (bpf_skb_load_bytes(skb, packet->l3, &ip, sizeof(ip)))
            return TC_ACT_SHOT;
        length = bpf_ntohs(ip.tot_len);
    } else {
        struct ipv6hdr ip;

        if (bpf_skb_load_bytes(skb, packet->l3, &ip, sizeof(ip)))
            return TC_ACT_SHOT;
        length = bpf_ntohs(ip.payload_len) + sizeof(ip);
    }
    if (length < ip_header + tcp.doff * 4)
        return TC_ACT_SHOT;
    length -= ip_header + tcp.doff * 4;
    length += !!(packet->tcp_flags & TCP_SYN) + !!(packet->tcp_flags & TCP_FIN);

    old_sequence = tcp.seq;
    old_acknowledged = tcp.ack_seq;
    sequence = packet->tcp_flags & TCP_ACK ? tcp.ack_seq : 0;
    acknowledged = bpf_htonl(bpf_ntohl(tcp.seq) + length);
    word = (__u8 *)&tcp + TCP_FLAGS_OFFSET;
    __builtin_memcpy(&old_flags, word, sizeof(old_flags));
    flags = (old_flags & bpf_htons(0xff00)) | bpf_htons(TCP_RST | TCP_ACK);

    if (bpf_l4_csum_replace(skb, checksum, old_sequence, sequence, 4) ||
        bpf_l4_csum_replace(skb, checksum, old_acknowledged, acknowledged, 4) ||
        bpf_l4_csum_replace(skb, checksum, old_flags, flags, 2))
        return TC_ACT_SHOT;

    __builtin_memcpy(turned.to, mac.from, ETH_ALEN);
    __builtin_memcpy(turned.from, mac.to, ETH_ALEN);
    bpf_skb_store_bytes(skb, 0, &turned, sizeof(turned), 0);
    if (packet->family == AF_INET) {
        bpf_skb_store_bytes(skb, packet->l3 + offsetof(struct iphdr, saddr), &packet->key.dst.bytes[12], 4, 0);
        bpf_skb_store_bytes(skb, packet->l3 + offsetof(struct iphdr, daddr), &packet->key.src.bytes[12], 4, 0);
    } else {
        bpf_skb_store_bytes(skb, packet->l3 + offsetof(struct ipv6hdr, saddr), &packet->key.dst, 16, 0);
        bpf_skb_store_bytes(skb, packet->l3 + offsetof(struct ipv6hdr, daddr), &packet->key.src, 16, 0);
    }
    bpf_skb_store_bytes(skb, packet->l4 + offsetof(struct tcphdr, source), &tcp.dest, sizeof(tcp.dest), 0);
    bpf_skb_store_bytes(skb, packet->l4 + offsetof(struct tcphdr, dest), &tcp.source, sizeof(tcp.source), 0);
    bpf_skb_store_bytes(skb, packet->l4 + offsetof(struct tcphdr, seq), &sequence, sizeof(sequence), 0);
    bpf_skb_store_bytes(skb, packet->l4 + offsetof(struct tcphdr, ack_seq), &acknowledged, sizeof(acknowledged), 0);
    bpf_skb_store_bytes(skb, packet->l4 + TCP_FLAGS_OFFSET, &flags, sizeof(flags), 0);
    return bpf_redirect(skb->ifindex, 0);
}

/* Hands the packet to `sk`, whose reference it takes. Behind a bridge port an assignment would be lost (the
 * bridge takes the packet and br_netfilter routes it), so it goes to the bridge's own ingress, where `steer`
 * looks the socket up again. */
static __always_inline int deliver(struct __sk_buff *skb, const struct packet *packet, const struct endpoint *endpoint,
                                   struct bpf_sock *sk, enum verdict verdict) {
    if (endpoint->flags & ENDPOINT_BRIDGED) {
        bpf_sk_release(sk);
        set_mark(skb);
        count(endpoint->id, verdict);
        return bpf_redirect(endpoint->bridge_ifindex, BPF_F_INGRESS);
    }
    if (!give(skb, sk))
        return drop(endpoint, VERDICT_ASSIGN_FAILED);
    count(endpoint->id, verdict);
    return TC_ACT_OK;
}

static __always_inline bool is_established(struct __sk_buff *skb, const struct flow_key *key) {
    struct bpf_sock *sk = connection_socket(skb, key, is_mapped(&key->src) ? AF_INET : AF_INET6);
    bool established;

    if (!sk)
        return false;
    established = sk->state == BPF_TCP_ESTABLISHED;
    bpf_sk_release(sk);
    return established;
}

/* Gives the flow a turn of its endpoint, whose former holder goes: an endpoint that opens ever more connections pushes
 * out its own records and nobody else's. Established ones are passed over, a few at a time. */
static __always_inline void take_turn(struct __sk_buff *skb, const struct flow_key *key, __u32 endpoint_id) {
    struct share *share = bpf_map_lookup_elem(&shares, &endpoint_id);
    struct turn turn = {.endpoint = endpoint_id};
    struct flow_key *holder;

    if (!share) {
        struct share none = {};

        bpf_map_update_elem(&shares, &endpoint_id, &none, BPF_NOEXIST);
        share = bpf_map_lookup_elem(&shares, &endpoint_id);
        if (!share)
            return;
    }
    for (int i = 0; i < TURNS_PASSED_OVER + 1; i++) {
        bpf_spin_lock(&share->lock);
        turn.number = share->recorded++ % MAX_FLOWS_OF_ENDPOINT;
        bpf_spin_unlock(&share->lock);
        holder = bpf_map_lookup_elem(&turns, &turn);
        if (!holder) {
            bpf_map_update_elem(&turns, &turn, key, BPF_ANY);
            return;
        }
        if (i == TURNS_PASSED_OVER || !is_established(skb, holder)) {
            bpf_map_delete_elem(&flows, holder);
            *holder = *key;
            return;
        }
    }
}

static __always_inline void remember(struct __sk_buff *skb, const struct flow_key *key, const struct flow *flow) {
    struct flow *before = bpf_map_lookup_elem(&flows, key);

    if (before && before->endpoint == flow->endpoint) {
        *before = *flow; /* the same 4-tuple again: it has had its turn */
        return;
    }
    take_turn(skb, key, flow->endpoint);
    bpf_map_update_elem(&flows, key, flow, BPF_ANY);
}

static __always_inline void record(struct __sk_buff *skb, const struct packet *packet, const struct endpoint *endpoint,
                                   __u32 ifindex) {
    struct flow flow = {
        .started_ns = bpf_ktime_get_ns(),
        .endpoint = endpoint->id,
        .generation = endpoint->generation,
        .ifindex = ifindex,
        .instance = endpoint->instance,
        .direction = DIRECTION_EGRESS,
    };

    remember(skb, &packet->key, &flow);
    report(packet, endpoint, ifindex, VERDICT_FLOW_STARTED);
}

static __always_inline bool is_known(const struct packet *packet, const struct endpoint *endpoint) {
    struct flow *flow = bpf_map_lookup_elem(&flows, &packet->key);

    return flow && started_by(flow, endpoint);
}

/* As is_known, of a packet whose socket was found: its record is there, as soon as it is a whole socket. A connection
 * that is in use keeps its row in `flows` as well, for those who look it up there. */
static __always_inline bool is_known_at(struct __sk_buff *skb, struct bpf_sock *sk, const struct packet *packet,
                                        const struct endpoint *endpoint) {
    struct connection *connection = bpf_sk_storage_get(&connections, sk, NULL, 0);
    struct connection fresh = {};
    struct flow *flow;

    if (connection) {
        if (!started_by(&connection->flow, endpoint))
            return false;
        if (bpf_jiffies64() - connection->refreshed > REFRESH_JIFFIES) {
            connection->refreshed = bpf_jiffies64();
            if (!bpf_map_lookup_elem(&flows, &packet->key))
                remember(skb, &packet->key, &connection->flow);
        }
        return true;
    }
    flow = bpf_map_lookup_elem(&flows, &packet->key);
    if (!flow || !started_by(flow, endpoint))
        return false;
    fresh.flow = *flow;
    fresh.refreshed = bpf_jiffies64();
    bpf_sk_storage_get(&connections, sk, &fresh, BPF_SK_STORAGE_GET_F_CREATE);
    return true;
}

/* A connection of the node's own with the pod (a probe, a proxy's plain upstream leg) also has a socket here.
 * It needs no help, and marking it would hide half of it from conntrack. */
static __always_inline bool is_local_destination(struct __sk_buff *skb, const struct packet *packet) {
    struct bpf_fib_lookup fib = {.family = packet->family, .ifindex = skb->ifindex, .l4_protocol = IPPROTO_TCP};

    if (packet->family == AF_INET) {
        __builtin_memcpy(&fib.ipv4_src, &packet->key.src.bytes[12], 4);
        __builtin_memcpy(&fib.ipv4_dst, &packet->key.dst.bytes[12], 4);
    } else {
        __builtin_memcpy(fib.ipv6_src, &packet->key.src, 16);
        __builtin_memcpy(fib.ipv6_dst, &packet->key.dst, 16);
    }
    return bpf_fib_lookup(skb, &fib, sizeof(fib), 0) == BPF_FIB_LKUP_RET_NOT_FWDED;
}

static __always_inline int no_listener(struct __sk_buff *skb, const struct packet *packet,
                                       const struct endpoint *endpoint) {
    if (endpoint->flags & ENDPOINT_FAILURE_OPEN) {
        /* From here on this tuple is an ordinary connection: an old record would make an orphan of it. */
        bpf_map_delete_elem(&flows, &packet->key);
        report(packet, endpoint, skb->ifindex, VERDICT_NO_LISTENER_OPEN);
        return pass(endpoint, VERDICT_NO_LISTENER_OPEN);
    }
    report(packet, endpoint, skb->ifindex, VERDICT_NO_LISTENER_RESET);
    return reset(skb, packet, endpoint, VERDICT_NO_LISTENER_RESET);
}

/* 127.0.0.0/8 and ::1. With route_localnet, which kube-proxy sets, the stack would take such a packet in, and the proxy
 * would dial its own node. */
static __always_inline bool is_loopback(const struct packet *packet) {
    const __u8 *bytes = packet->key.dst.bytes;

    if (packet->family == AF_INET)
        return bytes[12] == 127;
    for (int i = 0; i < 15; i++) {
        if (bytes[i])
            return false;
    }
    return bytes[15] == 1;
}

static __always_inline int start(struct __sk_buff *skb, const struct packet *packet, const struct endpoint *endpoint) {
    struct bpf_sock *listener;
    int action;

    if (is_loopback(packet))
        return drop(endpoint, VERDICT_LOOPBACK);
    listener = listener_socket(endpoint->instance, DIRECTION_EGRESS, packet->family);
    if (!listener)
        return no_listener(skb, packet, endpoint);
    action = deliver(skb, packet, endpoint, listener, VERDICT_FLOW_STARTED);
    if (action != TC_ACT_SHOT)
        record(skb, packet, endpoint, skb->ifindex);
    return action;
}

/* No socket, not a SYN. Of a flow that we started it is the last step of a SYN-cookie handshake, or its proxy is
 * gone: the listener tells the two apart and resets the latter. Of any other it is older than the enrolment. */
static __always_inline int without_socket(struct __sk_buff *skb, const struct packet *packet,
                                          const struct endpoint *endpoint) {
    struct bpf_sock *listener;

    if (!is_known(packet, endpoint)) {
        if (!(endpoint->flags & ENDPOINT_SINCE_BIRTH))
            return pass(endpoint, VERDICT_OLDER_CONNECTION);
        skb->priority = PRIORITY_LEFT_TO_CONNTRACK;
        return pass(endpoint, VERDICT_LEFT_TO_CONNTRACK);
    }
    listener = listener_socket(endpoint->instance, DIRECTION_EGRESS, packet->family);
    if (!listener)
        return reset(skb, packet, endpoint, VERDICT_NO_LISTENER_RESET);
    return deliver(skb, packet, endpoint, listener, VERDICT_SYN_COOKIE);
}

/* The agent's own packet, sent from the pod's end of the interface: it has come as far as any of the pod's would.
 * Only the nonce that is waited for is answered; a pod that sends such packets itself gains nothing. */
static __always_inline bool answer_canary(struct __sk_buff *skb, const struct packet *packet,
                                          const struct endpoint *endpoint) {
    struct canary_key key = {.ifindex = skb->ifindex, .family = packet->family};
    struct canary *canary = bpf_map_lookup_elem(&canaries, &key);
    struct bpf_sock *listener;
    __be32 sequence;

    if (!canary || bpf_skb_load_bytes(skb, packet->l4 + offsetof(struct tcphdr, seq), &sequence, sizeof(sequence)))
        return false;
    if (bpf_ntohl(sequence) != canary->nonce)
        return false;
    listener = listener_socket(endpoint->instance, DIRECTION_EGRESS, packet->family);
    canary->listening = listener ? 1 : 0;
    if (listener)
        bpf_sk_release(listener);
    canary->endpoint = endpoint->id;
    canary->generation = endpoint->generation;
    canary->instance = endpoint->instance;
    canary->answered = canary->nonce;
    return true;
}

static __always_inline bool is_open_udp(struct __sk_buff *skb, const struct packet *packet) {
    const __u16 dhcp = packet->family == AF_INET ? PORT_DHCP_SERVER : PORT_DHCPV6_SERVER;
    struct udphdr udp;
    __u16 port;

    if (bpf_skb_load_bytes(skb, packet->l4, &udp, sizeof(udp)))
        return false;
    port = bpf_ntohs(udp.dest);
    return port == dhcp || bpf_map_lookup_elem(&udp_ports, &port);
}

/* Router and neighbour solicitation and advertisement (RFC 4861), and the reports by which switches learn where such
 * messages have to go (RFC 2710, RFC 3810). */
static __always_inline bool is_discovery(struct __sk_buff *skb, const struct packet *packet) {
    __u8 type;

    if (packet->family != AF_INET6 || bpf_skb_load_bytes(skb, packet->l4, &type, sizeof(type)))
        return false;
    return type == ICMPV6_ROUTER_SOLICITATION || type == ICMPV6_NEIGHBOUR_SOLICITATION ||
           type == ICMPV6_NEIGHBOUR_ADVERTISEMENT || type == ICMPV6_MLD_REPORT || type == ICMPV6_MLD_DONE ||
           type == ICMPV6_MLD2_REPORT;
}

/* What an address needs to be of use, and what the configuration names. */
static __always_inline bool may_pass_closed(struct __sk_buff *skb, const struct packet *packet, int parsed) {
    if (packet->tagged || packet->fragment)
        return false;
    if (parsed == VERDICT_NOT_IP)
        return skb->protocol == bpf_htons(ETH_P_ARP);
    if (packet->key.protocol == IPPROTO_UDP)
        return is_open_udp(skb, packet);
    return packet->key.protocol == IPPROTO_ICMPV6 && is_discovery(skb, packet);
}

static __always_inline int not_tcp(struct __sk_buff *skb, const struct packet *packet, const struct endpoint *endpoint,
                                   int parsed) {
    if ((endpoint->flags & ENDPOINT_DROP_OTHER) && !may_pass_closed(skb, packet, parsed))
        return drop(endpoint, VERDICT_OTHER_DROPPED);
    return pass(endpoint, parsed);
}

SEC("tc")
int pod_egress(struct __sk_buff *skb) {
    const struct endpoint nobody = {};
    struct packet packet = {};
    struct endpoint *endpoint;
    struct bpf_sock *sk;
    __u32 ifindex = skb->ifindex;
    bool starts, again;
    int parsed;

    endpoint = bpf_map_lookup_elem(&endpoints, &ifindex);
    if (!endpoint)
        return pass(&nobody, VERDICT_NO_ENDPOINT);

    parsed = parse(skb, &packet);
    if (parsed == VERDICT_NOT_IP)
        return not_tcp(skb, &packet, endpoint, parsed);
    if (parsed != VERDICT_MALFORMED && parsed != VERDICT_EXTENSION_HEADERS && !source_belongs(ifindex, &packet))
        return drop(endpoint, VERDICT_SPOOFED_SOURCE);
    if (parsed == VERDICT_NOT_TCP)
        return not_tcp(skb, &packet, endpoint, parsed);
    if (parsed != PARSED_TCP)
        return drop(endpoint, parsed);

    starts = (packet.tcp_flags & (TCP_SYN | TCP_ACK | TCP_RST | TCP_FIN)) == TCP_SYN;
    if (starts && packet.key.dport == 0 && answer_canary(skb, &packet, endpoint))
        return TC_ACT_SHOT;
    sk = connection_socket(skb, &packet.key, packet.family);
    if (!sk)
        return starts ? start(skb, &packet, endpoint) : without_socket(skb, &packet, endpoint);
    if (!is_known_at(skb, sk, &packet, endpoint) && is_local_destination(skb, &packet)) {
        bpf_sk_release(sk);
        return starts ? start(skb, &packet, endpoint) : pass(endpoint, VERDICT_OLDER_CONNECTION);
    }
    /* A SYN for a socket in TIME_WAIT is a new connection on an old tuple. */
    again = starts && sk->state == BPF_TCP_TIME_WAIT;
    parsed = deliver(skb, &packet, endpoint, sk, again ? VERDICT_FLOW_STARTED : VERDICT_FLOW_PACKET);
    if (again && parsed != TC_ACT_SHOT)
        record(skb, &packet, endpoint, ifindex);
    return parsed;
}
