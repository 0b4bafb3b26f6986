// Works with an Umbel app from Node.js, with the Redis client alone: node valkey.mjs redis://… shop
import { createClient } from "redis";

const [url, namespace] = process.argv.slice(2);
const client = await createClient({ url }).connect();

// A list of our own for events, bound by Kombu's three parts: key, regular expression, list.
const exchange = `${namespace}.topics`;
const binding = ["shop.#", "^shop(\\.|$)", "node-events"].join("\x06\x16");
await client.sAdd(`_kombu.binding.${exchange}`, binding);
await client.sAdd(`_kombu.binding_permanent.${exchange}`, binding);

// A queue is a list of its name. Push left: workers pop right.
const put = (queue, document) => client.lPush(queue, document);

await put("greetings", JSON.stringify({ who: "JSON" }));
await put("greetings", "<shop.greet><who>XML</who></shop.greet>");
await put(
  "greetings",
  JSON.stringify({
    specversion: "1.0",
    id: "1",
    source: "urn:example:node",
    type: "shop.greet",
    data: { who: "CloudEvents" },
  }),
);
console.log("sent");

// An event that the app publishes is Kombu's envelope around a Celery message.
const events = await client.duplicate().connect();
process.once("SIGTERM", () => {
  events.destroy();
  client.destroy();
});
try {
  for (;;) {
    const { element } = await events.brPop("node-events", 0);
    const { headers, body } = JSON.parse(element);
    const [[payload]] = JSON.parse(Buffer.from(body, "base64"));
    console.log("event", headers["ce-type"], JSON.stringify(payload));
  }
} catch (error) {
  if (events.isOpen) throw error;
}
