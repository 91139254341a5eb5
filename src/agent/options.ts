/** Where one agent lives: what the command line tells it, none of it policy. */

export interface AgentOptions {
  readonly config: string;
  readonly runDir: string;
  readonly bpffs: string;
  /** Where sysctls are written; /proc/sys unless that is read-only here. */
  readonly procSys: string;
  /** Folder with the compiled BPF objects. */
  readonly bpfObjects: string;
  /** The default of `node` in the configuration; undefined: the hostname. */
  readonly nodeName?: string;
  /** False: a missing bpffs is an error. A mount in a container's own namespace would take the datapath with it. */
  readonly mountBpffs: boolean;
}
