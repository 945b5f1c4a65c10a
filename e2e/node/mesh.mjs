// Starts `mesh dev` for the tests. MESH_BIN names the binary.
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { createInterface } from 'node:readline';

/** Starts a network; resolves to its ready line, with stop() added. */
export async function start(hosts) {
  const bin = process.env.MESH_BIN;
  if (!bin) throw new Error('MESH_BIN is not set; it has to name the mesh binary');
  const child = spawn(bin, ['dev', '--hosts', String(hosts), '--json', '--api', '127.0.0.1:0'], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  const ended = once(child, 'exit');
  const lines = createInterface({ input: child.stdout });
  const first = await Promise.race([once(lines, 'line'), ended.then(() => null)]);
  if (!first) throw new Error('mesh dev ended without a line');
  const ready = JSON.parse(first[0]);
  if (ready.event !== 'ready' || ready.hosts?.length !== hosts) {
    child.kill('SIGKILL');
    throw new Error(`not a ready line: ${first[0]}`);
  }
  ready.stop = async () => {
    child.kill('SIGINT');
    const late = setTimeout(() => child.kill('SIGKILL'), 20_000);
    const [code, signal] = await ended;
    clearTimeout(late);
    const left = ready.hosts.filter(({ pid }) => alive(pid));
    for (const { pid } of left) process.kill(pid, 'SIGKILL');
    if (signal === 'SIGKILL') throw new Error('mesh dev did not stop within 20 s of SIGINT');
    if (left.length) throw new Error(`${left.length} hosts outlived mesh dev, which ended with ${code}`);
  };
  return ready;
}

function alive(pid) {
  try {
    process.kill(pid, 0);
    return true;
  } catch {
    return false;
  }
}

/** How many requests the hosts work on or hold back. */
export async function busy(network) {
  let total = 0;
  for (const host of network.hosts) {
    const status = await (await fetch(`${host.api}/mesh/v1/status`)).json();
    if (!status.engines?.length) throw new Error('a status has no engines');
    for (const { active, queued } of status.engines) {
      if (!Number.isInteger(active) || !Number.isInteger(queued)) throw new Error('a status has no active or queued');
      total += active + queued;
    }
  }
  return total;
}
