/** An HTTP server that answers with what it has been sent, at each of the ports that it is given. */

import { createServer } from 'node:http';

const ports = process.argv.slice(2).map(Number);
for (const port of ports) {
  createServer((request, response) => {
    const body = JSON.stringify({ url: request.url, headers: request.headersDistinct });
    response.writeHead(200, { 'content-type': 'application/json', 'content-length': body.length }).end(body);
  }).listen(port, '::');
}
process.stdout.write('echoing\n');
