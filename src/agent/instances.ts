/** What watches over the instances and upgrades them, put together for `agent.ts`. */

import type { Logger } from 'pino';
import { steadyUnixMs } from '../base/clock.js';
import type { Opened } from '../base/opened.js';
import type { EndpointTables } from '../datapath/endpoints.js';
import type { Flows } from '../datapath/flows.js';
import type { Generations } from '../datapath/generations.js';
import { ListenerProbe, type ProbeTarget } from '../datapath/listener-probe.js';
import type { Listeners } from '../datapath/listeners.js';
import type { DatapathPrograms } from '../datapath/manifest.js';
import { watchResets } from '../datapath/resets.js';
import type { GenerationNumber, InstanceGenerations } from '../instances/generations.js';
import { type Health, InstanceHealth } from '../instances/health.js';
import { memoryOf } from '../instances/memory.js';
import { Upgrades } from '../instances/upgrades.js';
import type { LiveInstances } from './live-instances.js';
import type { Supervision } from './supervision.js';

const HEALTH_LOOK_MS = 1_000;

export function openInstances(parts: {
  readonly live: LiveInstances;
  readonly generations: InstanceGenerations;
  readonly kernel: Generations;
  readonly listeners: Listeners;
  readonly flows: Flows;
  readonly programs: Pick<DatapathPrograms, 'maps' | 'layouts'>;
  readonly tables: Pick<EndpointTables, 'instances'>;
  readonly objects: string;
  /** Looks for what is wanted by now and writes who takes new flows. */
  readonly adopt: () => Promise<void>;
  readonly supervision: Pick<Supervision, 'renew' | 'renewalOf'>;
  readonly opened: Opened;
  readonly log: Logger;
}) {
  const { live, generations, kernel, listeners, flows, programs, tables, objects, adopt, opened, log } =
    parts;
  const { maps, layouts } = programs;
  const probe = (target: ProbeTarget) => new ListenerProbe({ flows: maps.flows, layouts }, target);
  const listenersOf = (name: string, generation: GenerationNumber) =>
    listeners
      .status()
      .filter((listener) => listener.instance === name && (listener.generation ?? 1) === generation);
  const health = opened.own(
    new InstanceHealth({
      lookMs: HEALTH_LOOK_MS,
      open: probe,
      changed: (name, hangs) => {
        generations.rest(name, hangs);
        generations.apply(live.current.filter((instance) => instance.name === name));
      },
      nowMs: () => performance.now(),
      log,
    }),
  );
  const look = () => {
    const used = tables.instances();
    health.look(
      live.current.map(({ name, health: rule }) => {
        const serving = generations.servingOf(name);
        return {
          name,
          number: generations.numberOf(name, serving),
          listeners: listenersOf(name, serving),
          rule: { checkMs: rule.checkSeconds * 1_000, failMs: rule.failSeconds * 1_000 },
          isUsed: used.has(generations.numberOf(name, 1)),
        };
      }),
    );
  };
  opened.add(
    setInterval(() => {
      try {
        look();
      } catch (error) {
        log.error({ err: error }, 'looking whether instances accept failed');
      }
    }, HEALTH_LOOK_MS),
    clearInterval,
  );
  const upgrades = opened.own(
    new Upgrades({
      instances: () => live.current,
      processes: parts.supervision,
      isStarted: (name) =>
        live.current.some((instance) => instance.name === name && instance.run !== undefined),
      generations,
      applied: adopt,
      listeners: listenersOf,
      probe,
      counts: (number) => kernel.counts(number),
      openAt: async (number) => (await flows.openByInstance()).get(number) ?? 0,
      watchResets: () => watchResets({ objects, maps }),
      terminate: (pid) => {
        try {
          process.kill(pid, 'SIGTERM');
        } catch {
          // it has ended by itself
        }
      },
      nowMs: steadyUnixMs,
      log,
    }),
  );
  /** What there is of an instance besides its configuration and its pods. */
  const stateOf = (name: string, open: ReadonlyMap<number, number>) => {
    const serving = generations.servingOf(name);
    const all = generations.generationsOf(name).map((generation) => generations.numberOf(name, generation));
    const state: Health = health.of(generations.numberOf(name, serving));
    return {
      generation: generations.upgradesOf(name) + 1,
      health: state,
      flowsStarted: all.reduce((sum, number) => sum + kernel.counts(number).started, 0),
      openFlows: all.reduce((sum, number) => sum + (open.get(number) ?? 0), 0),
      memoryBytes: memoryOf(listenersOf(name, serving).flatMap(({ pid }) => pid ?? [])) ?? null,
      upgrade: upgrades.of(name) ?? null,
    };
  };
  const view = {
    get current() {
      return live.current;
    },
    servedBy: (app: string) => live.servedBy(app),
    allServing: (app: string) => live.allServing(app),
    status: () => live.status(),
    states: async () => {
      const open = await flows.openByInstance();
      return new Map(live.current.map(({ name }) => [name, stateOf(name, open)]));
    },
  };
  return { view, upgrades, probe };
}
