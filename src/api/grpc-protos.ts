/** The services as their proto files describe them. */

import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import {
  type EnumTypeDefinition,
  loadSync,
  type Options,
  type PackageDefinition,
  type ServiceDefinition,
} from '@grpc/proto-loader';
import descriptor from 'protobufjs/ext/descriptor/index.js';

/** The same way up from dist/ as from src/. */
export const PROTO_FOLDER = fileURLToPath(new URL('../../proto', import.meta.url));
export const IDENTITY_SERVICE = 'nodesentry.identity.v1.Identity';
export const HEALTH_SERVICE = 'grpc.health.v1.Health';
export const AUTHORIZATION_SERVICE = 'envoy.service.auth.v3.Authorization';

const OPTIONS: Options = {
  longs: String,
  enums: String,
  defaults: true,
  oneofs: true,
  includeDirs: [PROTO_FOLDER],
};

/** TypeError where the file has no such service. */
export function loadService(file: string, name: string): ServiceDefinition {
  const definition = loadSync(file, OPTIONS)[name];
  if (definition === undefined || 'format' in definition) {
    throw new TypeError(`${file} has no service ${name}`);
  }
  return definition as ServiceDefinition;
}

/**
 * For reflection: the files as the compiler understood them. What the loader makes of them itself lacks the marks of
 * optional fields and the proper names of map entries, and clients refuse it. Of a
 * definition reflection reads nothing but the files.
 */
export function compiledProtos(): PackageDefinition {
  const bytes = readFileSync(join(PROTO_FOLDER, 'descriptors.binpb'));
  const { file } = descriptor.FileDescriptorSet.decode(bytes) as unknown as descriptor.IFileDescriptorSet;
  const fileDescriptorProtos = (file ?? []).map((one) =>
    Buffer.from(descriptor.FileDescriptorProto.encode(one).finish()),
  );
  const files: EnumTypeDefinition = {
    format: 'Protocol Buffer 3 EnumDescriptorProto',
    type: {},
    fileDescriptorProtos,
  };
  return { files };
}
