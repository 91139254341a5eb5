/** Stands between the CNI plugin and the agent, and can stop the agent at the very moment at which it has answered. */

import { connect, createServer, type Server } from 'node:net';
import { join } from 'node:path';
import type { Lab } from '../lab/lab.js';
import type { TestAgent } from './agent.js';

export class AnswerGate {
  readonly socket: string;
  readonly #server: Server;
  #answers = 0;
  /** Whatever the agent has not done when it answers, it cannot do before `release`. */
  freezing = false;

  private constructor(socket: string, agent: () => TestAgent) {
    this.socket = socket;
    this.#server = createServer({ allowHalfOpen: true }, (plugin) => {
      const { runDir, pid } = agent();
      const upstream = connect({ path: join(runDir, 'cni.sock'), allowHalfOpen: true });
      for (const [from, to] of [
        [plugin, upstream],
        [upstream, plugin],
      ] as const) {
        from.on('error', () => to.destroy());
        from.on('end', () => to.end());
      }
      plugin.on('data', (data) => upstream.write(data));
      upstream.on('data', (data) => {
        this.#answers += 1;
        if (this.freezing) {
          process.kill(pid, 'SIGSTOP');
          plugin.end(data); // the plugin reads to the end, which a stopped agent does not come to
        } else {
          plugin.write(data);
        }
      });
    });
  }

  static async listen(lab: Lab, agent: () => TestAgent): Promise<AnswerGate> {
    const gate = new AnswerGate(join(lab.directory, 'gate.sock'), agent);
    await new Promise<void>((resolve) => gate.#server.listen(gate.socket, resolve));
    lab.cleanup.add('the gate', () => gate.#server.close());
    return gate;
  }

  get answers(): number {
    return this.#answers;
  }
}
