// Node's fetch asking for the same jobs: `node fetch.mjs URL IN_FLIGHT SECONDS IDS…` prints what it needed as JSON.

const [url, inFlight, seconds, ...ids] = process.argv.slice(2);
const headers = { "X-API-Key": "a-key" };
let asked = 0;
let done = 0;
let going = true;

async function work() {
  while (going) {
    const response = await fetch(`${url}/jobs/${ids[asked++ % ids.length]}/status`, { headers });
    await response.json();
    done++;
  }
}

const sleep = (duration) => new Promise((resolve) => setTimeout(resolve, duration * 1000));
const workers = Array.from({ length: Number(inFlight) }, work);
await sleep(Math.max(seconds / 2, 0.02)); // and its compiler has warmed up
const [first, started, startedCpu] = [done, performance.now(), process.cpuUsage()];
await sleep(seconds);
const elapsed = (performance.now() - started) / 1000;
const cpu = process.cpuUsage(startedCpu);
const count = done - first;
going = false;
await Promise.all(workers);
console.log(JSON.stringify({ count, elapsed, cpu: (cpu.user + cpu.system) / 1e6 }));
