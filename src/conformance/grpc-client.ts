/** Calls by name, as the proto files describe them, over one socket. */

import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';
import {
  Client,
  type ClientReadableStream,
  credentials,
  type MethodDefinition,
  type ServiceDefinition,
} from '@grpc/grpc-js';
import { loadSync } from '@grpc/proto-loader';
import { PROTO_FOLDER } from '../api/grpc-protos.js';
import type { Fields } from './answer.js';

const TIMEOUT_MS = 10_000;
/** Reflection's own file comes with the package that serves it. */
const REFLECTION_PROTOS = join(
  dirname(createRequire(import.meta.url).resolve('@grpc/reflection')),
  '../proto',
);

export class GrpcClients {
  readonly #client: Client;

  constructor(socketPath: string) {
    this.#client = new Client(`unix:${socketPath}`, credentials.createInsecure());
  }

  of(protoFile: string, service: string): GrpcClient {
    const definition = loadSync(protoFile, {
      longs: String,
      enums: String,
      defaults: true,
      oneofs: true,
      includeDirs: [PROTO_FOLDER, REFLECTION_PROTOS],
    });
    return new GrpcClient(this.#client, definition[service] as ServiceDefinition);
  }

  close(): void {
    this.#client.close();
  }
}

/** Of one service. Calls reject with ServiceError, also where nobody answers within 10 s. */
export class GrpcClient {
  readonly #client: Client;
  readonly #service: ServiceDefinition;

  constructor(client: Client, service: ServiceDefinition) {
    this.#client = client;
    this.#service = service;
  }

  call(method: string, message: object): Promise<Fields> {
    const { path, requestSerialize, responseDeserialize } = this.#method(method);
    const options = { deadline: Date.now() + TIMEOUT_MS };
    return new Promise((resolve, reject) => {
      this.#client.makeUnaryRequest<object, Fields>(
        path,
        requestSerialize,
        responseDeserialize,
        message,
        options,
        (error, response = {}) => (error === null ? resolve(response) : reject(error)),
      );
    });
  }

  /** Without an end of its own. */
  stream(method: string, message: object): ClientReadableStream<Fields> {
    const { path, requestSerialize, responseDeserialize } = this.#method(method);
    return this.#client.makeServerStreamRequest(path, requestSerialize, responseDeserialize, message);
  }

  /** The first answer of a call that streams both ways. */
  exchange(method: string, message: object): Promise<Fields> {
    const { path, requestSerialize, responseDeserialize } = this.#method(method);
    const options = { deadline: Date.now() + TIMEOUT_MS };
    return new Promise((resolve, reject) => {
      const call = this.#client.makeBidiStreamRequest<object, Fields>(
        path,
        requestSerialize,
        responseDeserialize,
        options,
      );
      call.once('data', resolve);
      call.once('end', () => reject(new Error(`${path} ended without an answer`)));
      call.on('error', reject);
      call.end(message);
    });
  }

  #method(name: string): MethodDefinition<object, Fields> {
    const method = this.#service[name];
    if (method === undefined) {
      throw new TypeError(`there is no method ${name}`);
    }
    return method;
  }
}
