// dcmjs-dimse stores files, one association for those of a transfer syntax. PLAN and ANSWERS are JSON files.
import { readFileSync, writeFileSync } from 'node:fs';
import dcmjsDimse from 'dcmjs-dimse';

const { Client } = dcmjsDimse;
const { CStoreRequest } = dcmjsDimse.requests;
const [, , asked, answered] = process.argv;
const plan = JSON.parse(readFileSync(asked));
const answers = [];

function store(paths, port) {
  return new Promise((resolve) => {
    const client = new Client();
    for (const path of paths) {
      try {
        const request = new CStoreRequest(path);
        request.on('response', (response) => answers.push([path, port, response.getStatus()]));
        client.addRequest(request);
      } catch (error) {
        answers.push([path, port, String(error)]);
      }
    }
    client.on('networkError', (error) => { answers.push([paths, port, String(error)]); resolve(); });
    client.on('associationRejected', () => { answers.push([paths, port, 'rejected']); resolve(); });
    client.on('closed', resolve);
    client.send('127.0.0.1', port, 'DCMJS', plan.called);
  });
}

for (const port of plan.ports) {
  for (const paths of plan.groups) {
    try {
      await store(paths, port);
    } catch (error) {
      answers.push([paths, port, String(error)]);
    }
  }
}
writeFileSync(answered, JSON.stringify(answers));
process.exit(0);
