// Works with an Umbel app from Node.js, with amqplib alone: node rabbitmq.mjs amqp://… shop
import { once } from "node:events";
import amqp from "amqplib";

const [url, namespace] = process.argv.slice(2);
const connection = await amqp.connect(url);
const channel = await connection.createConfirmChannel();

// Whoever consumes a queue declares it. Only look that it is there: the arguments are not ours.
await channel.checkQueue("greetings");

// A queue of our own for events, bound by AMQP's patterns before anything is published.
await channel.assertQueue("node-events", { durable: true });
await channel.bindQueue("node-events", `${namespace}.topics`, "shop.#");

const put = (queue, document, options) =>
  channel.sendToQueue(queue, Buffer.from(document), {
    persistent: true, // else it is lost when the server restarts
    mandatory: true,
    ...options,
  });
channel.on("return", (message) => console.error("no such queue:", message.fields.routingKey));

put("greetings", JSON.stringify({ who: "JSON" }), { contentType: "application/json" });
put("greetings", "<shop.greet><who>XML</who></shop.greet>", { contentType: "application/xml" });
put(
  "greetings",
  JSON.stringify({
    specversion: "1.0",
    id: "1",
    source: "urn:example:node",
    type: "shop.greet",
    data: { who: "CloudEvents" },
  }),
  { contentType: "application/cloudevents+json" },
);
// The attributes as headers instead; and a messageId is the job's id.
put("greetings", JSON.stringify({ who: "binary mode" }), {
  contentType: "application/json",
  headers: {
    "cloudEvents:specversion": "1.0",
    "cloudEvents:id": "2",
    "cloudEvents:source": "urn:example:node",
    "cloudEvents:type": "shop.greet",
  },
});
put("greetings", JSON.stringify({ who: "messageId" }), {
  contentType: "application/json",
  messageId: "node-1",
});
await channel.waitForConfirms();
console.log("sent");

// An event that the app publishes is a Celery message: its payload is the first argument.
await channel.consume("node-events", (message) => {
  const [[payload]] = JSON.parse(message.content);
  console.log("event", message.properties.headers["ce-type"], JSON.stringify(payload));
  channel.ack(message);
});
await once(process, "SIGTERM");
await connection.close();
