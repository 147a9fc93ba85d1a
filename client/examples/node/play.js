// Plays one Atari episode through a playserve server: raw frames up, actions back.
//
//   npm ci
//   node play.js --server 127.0.0.1:50051 --policy freeway --game freeway
//
// It knows nothing of playserve but its proto files. The game itself runs in atari_env.py, since the emulator's
// bindings are Python's; everything on the wire is made and read here. The last line on stdout is a JSON summary.
'use strict';

const { spawn } = require('node:child_process');
const path = require('node:path');
const { parseArgs } = require('node:util');
const grpc = require('@grpc/grpc-js');
const protoLoader = require('@grpc/proto-loader');
const protobuf = require('protobufjs');

const { values: args } = parseArgs({
  options: {
    server: { type: 'string', default: '127.0.0.1:50051' },
    policy: { type: 'string', default: 'freeway' },
    game: { type: 'string', default: 'freeway' },
    seed: { type: 'string', default: '1' },
    'max-steps': { type: 'string', default: '27000' },
    python: { type: 'string', default: 'python3' },
    protos: { type: 'string', default: path.join(__dirname, '..', '..', '..', 'proto') },
  },
});

const OURS = path.join(__dirname, 'protos'); // google/rpc/*.proto, which proto-loader does not bring
const DEADLINE_MS = 120000;

function loadService() {
  const definition = protoLoader.loadSync('playserve/v1/policy_service.proto', {
    includeDirs: [args.protos, OURS],
    keepCase: true,
    longs: String, // uint64 does not fit a number
    enums: String,
    defaults: true,
    oneofs: true,
  });
  return grpc.loadPackageDefinition(definition).playserve.v1;
}

// Errors of a step travel as google.rpc.Status, those of a call as the same in a trailer: both hold an ErrorInfo.
function loadRpcTypes() {
  const root = new protobuf.Root();
  root.resolvePath = (origin, target) =>
    protobuf.common.get(target) ? target : path.join(OURS, target);
  root.loadSync(['google/rpc/status.proto', 'google/rpc/error_details.proto']);
  return { Status: root.lookupType('google.rpc.Status'), ErrorInfo: root.lookupType('google.rpc.ErrorInfo') };
}

const rpc = loadRpcTypes();

function reasonOf(status) {
  for (const detail of status.details) {
    if ((detail.type_url || '').endsWith('/google.rpc.ErrorInfo')) {
      return rpc.ErrorInfo.decode(detail.value).reason;
    }
  }
  return '';
}

// A bidirectional call as send() and await receive().
class Session {
  constructor(call) {
    this.call = call;
    this.answers = [];
    this.waiting = [];
    this.over = null; // {error} once the stream has ended
    call.on('data', (message) => this._settle((waiter) => waiter.resolve(message), message));
    call.on('error', (error) => this._finish(error));
    call.on('end', () => this._finish(null));
  }

  _settle(give, message) {
    const waiter = this.waiting.shift();
    if (waiter) give(waiter);
    else this.answers.push(message);
  }

  _finish(error) {
    if (this.over) return;
    this.over = { error };
    for (const waiter of this.waiting.splice(0)) waiter.reject(this._end());
  }

  _end() {
    const { error } = this.over;
    if (!error) return new Error('the stream has ended');
    const trailer = error.metadata && error.metadata.get('grpc-status-details-bin')[0];
    const reason = trailer ? reasonOf(rpc.Status.toObject(rpc.Status.decode(trailer))) : '';
    return Object.assign(new Error(`${reason || error.code}: ${error.details}`), { reason });
  }

  send(message) {
    this.call.write(message);
  }

  receive() {
    if (this.answers.length) return Promise.resolve(this.answers.shift());
    if (this.over) return Promise.reject(this._end());
    return new Promise((resolve, reject) => this.waiting.push({ resolve, reject }));
  }

  async expect(kind) {
    const answer = await this.receive();
    if (answer.message !== kind) {
      const why = answer.error ? `: ${reasonOf(answer.error.status)} ${answer.error.status.message}` : '';
      throw new Error(`wanted ${kind}, got ${answer.message}${why}`);
    }
    return answer[kind];
  }

  // Close, and wait for the stream to end with OK.
  async close() {
    this.send({ close: { reason: 'the episode is over' } });
    this.call.end();
    try {
      const answer = await this.receive();
      throw new Error(`an answer after Close: ${answer.message}`);
    } catch (error) {
      if (!this.over || this.over.error) throw error;
    }
  }
}

// The game in its own process: a line of JSON each way, observations as raw bytes.
class Game {
  constructor(python, game) {
    this.process = spawn(python, [path.join(__dirname, 'atari_env.py'), '--game', game], {
      stdio: ['pipe', 'pipe', 'inherit'],
    });
    this.buffer = Buffer.alloc(0);
    this.waiter = null;
    this.process.stdout.on('data', (data) => {
      this.buffer = Buffer.concat([this.buffer, data]);
      this._deliver();
    });
    this.process.on('exit', (code) => {
      if (this.waiter) this.waiter.reject(new Error(`the game ended with status ${code}`));
    });
  }

  _deliver() {
    const end = this.buffer.indexOf(10);
    if (!this.waiter || end < 0) return;
    const header = JSON.parse(this.buffer.subarray(0, end).toString());
    if (this.buffer.length < end + 1 + header.bytes) return;
    const frames = this.buffer.subarray(end + 1, end + 1 + header.bytes);
    this.buffer = this.buffer.subarray(end + 1 + header.bytes);
    const { resolve } = this.waiter;
    this.waiter = null;
    resolve({ ...header, frames });
  }

  ask(request) {
    return new Promise((resolve, reject) => {
      this.waiter = { resolve, reject };
      this.process.stdin.write(`${JSON.stringify(request)}\n`);
      this._deliver();
    });
  }

  stop() {
    this.process.stdin.end();
  }
}

function getPolicy(client, policy) {
  return new Promise((resolve, reject) => {
    const deadline = Date.now() + DEADLINE_MS;
    client.GetPolicy({ policy }, { deadline }, (error, answer) => (error ? reject(error) : resolve(answer.policy)));
  });
}

async function play(client, game) {
  const spec = await getPolicy(client, args.policy);
  const [input] = spec.inputs;
  const session = new Session(client.Play({ deadline: Date.now() + DEADLINE_MS }));
  session.send({
    open: {
      policy: spec.name,
      pace: 'PACE_LOCKSTEP',
      seed: args.seed,
      client: { name: 'playserve-node', version: '0.1.0', platform: process.platform },
    },
  });
  const opened = await session.expect('opened');
  const tensor = (shape, data) => ({ name: input.name, dtype: input.dtype, shape, codec: 'CODEC_RAW', data });

  // A step of a wrong shape is refused in-band, and the game goes on.
  session.send({ step: { seq: 1, inputs: [tensor([1, 2, 3], Buffer.alloc(6))] } });
  const refused = reasonOf((await session.expect('error')).status);

  let observed = await game.ask({ reset: Number(args.seed) });
  let score = 0;
  let steps = 0;
  const counts = {};
  while (steps < Number(args['max-steps']) && !observed.terminated && !observed.truncated) {
    session.send({ step: { seq: steps + 1, inputs: [tensor(observed.shape, observed.frames)] } });
    const result = await session.expect('result');
    if (result.seq !== String(steps + 1)) throw new Error(`answer to step ${result.seq}, wanted ${steps + 1}`);
    const { index } = result.actions[0];
    counts[index] = (counts[index] || 0) + 1;
    observed = await game.ask({ step: index });
    score += observed.reward;
    steps += 1;
  }
  await session.close();

  // The token of a session that is closed opens nothing: the reason comes in the trailers.
  const again = new Session(client.Play({ deadline: Date.now() + DEADLINE_MS }));
  again.send({ open: { resume_token: opened.resume_token } });
  const late = await again.receive().catch((error) => error);
  again.call.end();
  return {
    policy: opened.policy.name,
    version: opened.policy.version,
    seed: opened.seed,
    steps,
    score,
    actions: counts,
    ended: observed.terminated || observed.truncated,
    wrong_shape: refused,
    resume_after_close: late.reason || '',
  };
}

async function main() {
  const { PolicyService } = loadService();
  const client = new PolicyService(args.server, grpc.credentials.createInsecure());
  const game = new Game(args.python, args.game);
  try {
    console.log(JSON.stringify(await play(client, game)));
  } finally {
    game.stop();
    client.close();
  }
}

main().catch((error) => {
  console.error(`play.js: ${error.message}`);
  process.exitCode = 1;
});
