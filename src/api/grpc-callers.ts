/** What a connection's caller may do, checked at each of its calls before and after the service sees it. */

import {
  experimental,
  type ServerCredentials,
  ServerInterceptingCall,
  type ServerInterceptor,
} from '@grpc/grpc-js';
import type { Scope } from '../config/config.js';
import type { Caller } from './caller.js';
import { AUTHORIZATION_SERVICE, IDENTITY_SERVICE } from './grpc-protos.js';
import type { GrpcStatuses } from './grpc-status.js';

/** What of other services is asked, health and reflection, needs none. */
const SCOPES: ReadonlyMap<string, Scope> = new Map([
  [`/${IDENTITY_SERVICE}/Resolve`, 'resolve'],
  [`/${IDENTITY_SERVICE}/BatchResolve`, 'resolve'],
  [`/${IDENTITY_SERVICE}/Watch`, 'watch'],
  [`/${IDENTITY_SERVICE}/GetStatus`, 'admin'],
  [`/${AUTHORIZATION_SERVICE}/Check`, 'resolve'],
]);

/** For the connection of this caller alone. */
export function credentialsOf(
  caller: Caller,
  base: ServerCredentials,
  statuses: GrpcStatuses,
): ServerCredentials {
  const checked: ServerInterceptor = ({ path, responseStream }, call) => {
    /** Whether the step could be done; else the call has ended. */
    const goesOn = (step: () => void): boolean => {
      try {
        step();
        return true;
      } catch (error) {
        call.sendStatus(statuses.of(error, path));
        return false;
      }
    };
    return new ServerInterceptingCall(call, {
      start: (next) => {
        const needed = SCOPES.get(path) ?? (path.startsWith(`/${IDENTITY_SERVICE}/`) ? 'admin' : undefined);
        if (goesOn(() => caller.require(needed))) {
          next({
            onReceiveMessage: (message, take) => {
              if (goesOn(() => caller.charge(questionsIn(message)))) {
                take(message);
              }
            },
          });
        }
      },
      sendMessage: (message, send) => {
        // A stream goes to whoever has the connection, and ends with it.
        if (responseStream || goesOn(() => caller.checkAgain())) {
          send(message);
        }
      },
    });
  };
  return experimental.createServerCredentialsWithInterceptors(base, [checked]);
}

function questionsIn({ requests }: { readonly requests?: unknown }): number {
  return Array.isArray(requests) ? Math.max(1, requests.length) : 1;
}
