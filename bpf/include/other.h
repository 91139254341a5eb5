/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* What is not TCP, of a pod whose other protocols are closed (docs/datapath.md, "What is not TCP"). */
#pragma once

#include <linux/udp.h>

#include "maps.h"
#include "parse.h"

#define PORT_DHCP_SERVER 67
#define PORT_DHCPV6_SERVER 547
#define ICMPV6_MLD_REPORT 131
#define ICMPV6_MLD_DONE 132
#define ICMPV6_ROUTER_SOLICITATION 133
#define ICMPV6_NEIGHBOUR_SOLICITATION 135
#define ICMPV6_NEIGHBOUR_ADVERTISEMENT 136
#define ICMPV6_MLD2_REPORT 143

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
