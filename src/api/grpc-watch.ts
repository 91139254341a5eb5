/** The watch of the identities over gRPC: a message per event, serialized once for all who watch. */

import type { ServerWritableStream } from '@grpc/grpc-js';
import type { MethodDefinition, ServiceDefinition } from '@grpc/proto-loader';
import { IdentityError } from '../identity/errors.js';
import type { IdentityWatch, WatchFrom } from '../identity/watch.js';
import type { WatchEvent } from '../identity/watch-events.js';
import { workloadMessage } from './grpc-messages.js';
import { ApiProblem } from './problem.js';
import { parseWatchFrom } from './query.js';

export interface WatchRequest {
  readonly epoch: string;
  readonly since: string;
}

export type WatchCall = ServerWritableStream<WatchRequest, Buffer>;

/** The service with `Watch` as one that is given bytes. */
export function withSerializedWatch(service: ServiceDefinition): ServiceDefinition {
  const asIs = (bytes: object) => bytes as Buffer;
  return { ...service, Watch: { ...watchOf(service), responseSerialize: asIs } };
}

export class IdentityCalls {
  readonly #watch: IdentityWatch;
  readonly #serialize: (message: object) => Buffer;
  readonly #messages = new WeakMap<WatchEvent, Buffer>();

  /** `service` as the proto file has it. */
  constructor(watch: IdentityWatch, service: ServiceDefinition) {
    this.#watch = watch;
    this.#serialize = watchOf(service).responseSerialize;
  }

  /** Writes until the caller has gone. Throws IdentityError KEY_INVALID and ApiProblem RATE_LIMITED. */
  follow(call: WatchCall): void {
    const from = watchFrom(call.request);
    if (this.#watch.full) {
      throw new ApiProblem(429, 'RATE_LIMITED', 'as many others watch as are allowed to: try again later');
    }
    const subscription = this.#watch.subscribe(from, {
      sizeOf: (event) => this.#message(event).length,
      write: (events) => events.map((event) => call.write(this.#message(event))).every((isTaken) => isTaken),
      end: () => call.end(),
    });
    call.on('drain', () => subscription.drained());
    call.once('cancelled', () => subscription.close()); // whatever the call ended by
  }

  #message(event: WatchEvent): Buffer {
    const known = this.#messages.get(event);
    if (known !== undefined) {
      return known;
    }
    const message = this.#serialize(messageOf(event));
    this.#messages.set(event, message);
    return message;
  }
}

function watchOf({ Watch }: ServiceDefinition): MethodDefinition<object, object> {
  if (Watch === undefined) {
    throw new TypeError('the service has no Watch');
  }
  return Watch;
}

/** A field that was left out is an empty text, or `"0"`. */
function watchFrom({ epoch, since }: WatchRequest): WatchFrom {
  if (epoch === '' && since !== '0') {
    throw new IdentityError('KEY_INVALID', `since: ${since} is a revision of which epoch?`);
  }
  return epoch === '' ? {} : parseWatchFrom({ epoch, since });
}

function messageOf(event: WatchEvent): object {
  const { epoch, revision } = event;
  switch (event.kind) {
    case 'upsert':
      return { epoch, revision, upsert: workloadMessage(event.workload) };
    case 'removed':
      return { epoch, revision, removed: { uid: event.uid, generation: event.generation } };
    default:
      return { epoch, revision, [event.kind]: {} };
  }
}
